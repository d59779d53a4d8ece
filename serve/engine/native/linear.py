"""A weight on our own kernels: bf16, int8 or int4, packed once, for any number of tokens.

Promise: `layer(x)` is x @ weight.T + bias; a row's result is bitwise the same whatever its company and the number of threads (see
gemm.h). Price: the packed copy, and for the length of the packing the pages of the stored one; ~10 ms per 100 MB and core.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from serve.engine.native.library import load

__all__ = ["BF16", "INT4", "INT8", "Matrix", "NativeLinear"]

BF16, INT8, INT4 = range(3)
PANEL = 32
GROUPS = (32, 64, 128)
"""Columns per scale that the kernels know; larger multiples of 128 are repeated."""


class Matrix(ctypes.Structure):
    """`struct Matrix` of rows.h."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("n", ctypes.c_long),
        ("k", ctypes.c_long),
        ("data", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("group", ctypes.c_long),
    )


class NativeLinear:
    """Weights [N, K] stored in parts, one below the other.

    `parts`: bf16 [n, K]; int8 as uint8 [n, K], each value plus 128; int4 as uint8 [n, ceil(K / 2)], two values plus 8 per byte, the
    lower bits first. Rows may be strided. `scales` [N, groups] (any float type; None for bf16) with `group` columns each, or 0 for one
    per row. `bias` [N] or None.
    """

    def __init__(
        self, kind: int, k: int, parts: Sequence[Tensor], scales: Tensor | None = None, bias: Tensor | None = None, group: int = 0
    ) -> None:
        self._library = load("linear")
        self.n, self.k, self.kind = sum(len(part) for part in parts), k, kind
        threads = torch.get_num_threads()
        parts = [part if part.stride(-1) == 1 else part.contiguous() for part in parts]
        num_bytes = _size(self._library.sterna_packed_bytes)(kind, ctypes.c_long(self.n), ctypes.c_long(k))
        self._data = aligned_bytes(num_bytes)
        self._pack(parts, threads)
        self._scales, group = (None, 0) if scales is None else _panels(scales, group, k)
        self._bias = None if bias is None else bias.float().contiguous()
        self._matrix = Matrix(kind, self.n, k, self._data.data_ptr(), _address(self._scales), _address(self._bias), group)
        self.num_bytes = num_bytes + sum(t.nbytes for t in (self._scales, self._bias) if t is not None)
        self.matrix = ctypes.addressof(self._matrix)
        """The address of the C struct, valid as long as this object lives."""

    def _pack(self, parts: Sequence[Tensor], threads: int) -> None:
        count = len(parts)
        self._library.sterna_pack(
            self.kind,
            ctypes.c_long(self.k),
            ctypes.c_long(count),
            (ctypes.c_void_p * count)(*(part.data_ptr() for part in parts)),
            (ctypes.c_long * count)(*(len(part) for part in parts)),
            (ctypes.c_long * count)(*(part.stride(0) * part.element_size() for part in parts)),
            ctypes.c_void_p(self._data.data_ptr()),
            threads,
        )

    def __call__(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """x [T, K] in bf16 or float32 -> [T, N] in `out_dtype`, by default x's own."""
        out_dtype = out_dtype or x.dtype
        assert {x.dtype, out_dtype} <= {torch.bfloat16, torch.float32} and x.shape[1] == self.k
        x = x if x.stride(-1) == 1 else x.contiguous()
        m, y = len(x), torch.empty(len(x), self.n, dtype=out_dtype)
        if m == 0:
            return y
        memory = torch.empty(_size(self._library.sterna_rows_bytes)(ctypes.c_long(m), ctypes.c_long(self.k)) + 64, dtype=torch.uint8)
        self._library.sterna_linear(
            ctypes.c_void_p(self.matrix),
            ctypes.c_void_p(x.data_ptr()),
            int(x.dtype == torch.float32),
            ctypes.c_long(x.stride(0)),
            ctypes.c_long(m),
            ctypes.c_void_p(y.data_ptr()),
            int(out_dtype == torch.float32),
            ctypes.c_long(self.n),
            0,
            ctypes.c_void_p((memory.data_ptr() + 63) // 64 * 64),
            torch.get_num_threads(),
        )
        return y


def _size(function: ctypes._CFuncPtr) -> ctypes._CFuncPtr:
    function.restype = ctypes.c_size_t
    return function


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def aligned_bytes(size: int) -> Tensor:
    """uint8 [size] on fresh pages (huge ones if the system has them): a stream over weights then misses fewer translations."""
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= 1 << 22 and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8, count=size)


def _panels(scales: Tensor, group: int, k: int) -> tuple[Tensor, int]:
    """Scales [N, groups] as [panels, groups, 32] float32, and the columns per scale (0: the whole row)."""
    if group > GROUPS[-1]:
        if group % GROUPS[-1]:
            raise ValueError(f"model: weights in groups of {group}; the engine's kernels run groups of 32, 64 and multiples of 128")
        scales, group = scales.repeat_interleave(group // GROUPS[-1], 1)[:, : -(-k // GROUPS[-1])], GROUPS[-1]
    n, groups = scales.shape
    padded = aligned_bytes(-(-n // PANEL) * PANEL * groups * 4).view(torch.float32).view(-1, groups, PANEL)
    whole = n // PANEL
    padded[:whole] = scales[: whole * PANEL].view(whole, PANEL, groups).transpose(1, 2)
    if n % PANEL:
        padded[whole, :, : n % PANEL] = scales[whole * PANEL :].T
    return padded, group
