"""KV blocks in the layout of the native kernels, in bf16 or int8, and the attention over them for the Python path.

Promise: as `attention.KvCache`, with results that do not depend on company (attention.h). A block lies in one piece, all layers of it, so
copying blocks out and in is copying rows. Price: pages are taken from the system when they are first written. int8 keeps one scale
per token and head for keys and one for values: 0.53 of bf16's bytes at head_dim 64.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence as Series

import torch
from torch import Tensor

from serve.engine.attention import Scores, Span
from serve.engine.native.library import load
from serve.engine.native.memory import own_bytes

__all__ = ["NativeAttention", "NativeCache", "Workspace", "block_bytes", "fits"]

TILE = 16
"""Keys that lie together; a block holds whole tiles."""
MOST_GROUP, MOST_DIM = 48, 1024


def fits(num_heads: int, num_kv_heads: int, head_dim: int, block_size: int) -> bool:
    """Whether the kernels run this shape."""
    return block_size % TILE == 0 and head_dim % 16 == 0 and head_dim <= MOST_DIM and num_heads <= MOST_GROUP * num_kv_heads


def block_bytes(num_layers: int, num_kv_heads: int, head_dim: int, block_size: int, quantised: bool) -> int:
    """Memory of one block over all layers."""
    values = 2 * block_size * head_dim
    return num_layers * num_kv_heads * (values + 2 * block_size * 4 if quantised else values * 2)


class _Cache(ctypes.Structure):
    """`struct Cache` of attention.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("num_layers", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("block_size", ctypes.c_int64),
        ("quantised", ctypes.c_int64),
    )


class Workspace:
    """Memory that the kernels keep from call to call; one call at a time."""

    def __init__(self) -> None:
        self._library = load("decoder")
        self._library.sterna_workspace.restype = ctypes.c_void_p
        self.address = ctypes.c_void_p(self._library.sterna_workspace())

    def __del__(self) -> None:
        self._library.sterna_workspace_free(self.address)


class NativeCache:
    """The KV blocks of all layers."""

    device = torch.device("cpu")

    def __init__(
        self, num_layers: int, num_kv_heads: int, head_dim: int, num_blocks: int, block_size: int, quantised: bool = False
    ) -> None:
        assert fits(num_kv_heads, num_kv_heads, head_dim, block_size), "ask fits() first"
        self.num_blocks, self.block_size, self.quantised = num_blocks, block_size, quantised
        self.num_layers, self.num_kv_heads, self.head_dim = num_layers, num_kv_heads, head_dim
        self.bytes_per_block = block_bytes(num_layers, num_kv_heads, head_dim, block_size, quantised)
        self.kv_kind = f"native-{'int8' if quantised else 'bfloat16'}"
        self.data = own_bytes(num_blocks * self.bytes_per_block).view(num_blocks, self.bytes_per_block)
        self._struct = _Cache(self.data.data_ptr(), num_layers, num_kv_heads, head_dim, block_size, quantised)
        self.address = ctypes.addressof(self._struct)
        self.workspace = Workspace()

    def scratch(self, num_tokens: int) -> NativeCache:
        """A cache of the same kind with room for one text, in its blocks 0, 1, …"""
        num_blocks = -(-num_tokens // self.block_size)
        return NativeCache(self.num_layers, self.num_kv_heads, self.head_dim, num_blocks, self.block_size, self.quantised)

    def attend(self, spans: Series[Span], windows: Series[int | None], scores: Scores) -> NativeAttention:
        """A step's attention."""
        return NativeAttention(self, spans, windows, scores)

    def copy_out(self, blocks: Series[int]) -> Tensor:
        """uint8 [len(blocks), bytes_per_block]."""
        return self.data.index_select(0, torch.tensor(blocks, dtype=torch.long))

    def copy_in(self, blocks: Series[int], data: Tensor) -> None:
        """What `copy_out` gave, into these blocks."""
        for block, row in zip(blocks, data, strict=True):  # nine times as fast as torch's own scattering of bytes
            self.data[block].copy_(row)


class NativeAttention:
    """`model.Attend` over a native cache: the step's tokens lie flat, span after span, in any order."""

    def __init__(self, cache: NativeCache, spans: Series[Span], windows: Series[int | None], scores: Scores) -> None:
        self._cache, self._windows, self._scores = cache, windows, scores
        self._plan, self._tables = array("i"), array("i")
        for span in spans:
            self._plan.extend((span.start, span.length, len(self._tables)))
            self._tables.extend(span.blocks)
        self._num_spans = len(spans)

    def __call__(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        """q [T, heads, head_dim], kv [2, kv_heads, T, head_dim] of the step's tokens, bf16 -> [T, heads * head_dim]."""
        num_tokens, heads, dim = q.shape
        assert q.stride()[1:] == (dim, 1)
        assert kv.stride(3) == 1
        out = torch.empty(num_tokens, heads * dim, dtype=torch.bfloat16)
        load("decoder").sterna_attend(
            self._cache.workspace.address,
            ctypes.c_void_p(self._cache.address),
            ctypes.c_long(layer),
            ctypes.c_void_p(self._plan.buffer_info()[0]),
            ctypes.c_long(self._num_spans),
            ctypes.c_void_p(self._tables.buffer_info()[0]),
            ctypes.c_void_p(q.data_ptr()),
            ctypes.c_long(q.stride(0)),
            ctypes.c_void_p(kv.data_ptr()),
            *(ctypes.c_long(stride) for stride in kv.stride()[:3]),
            ctypes.c_long(heads),
            ctypes.c_double(self._scores.scale or dim**-0.5),
            ctypes.c_double(self._scores.soft_cap or 0.0),
            ctypes.c_long(self._windows[layer] or 0),
            ctypes.c_void_p(out.data_ptr()),
            torch.get_num_threads(),
        )
        return out
