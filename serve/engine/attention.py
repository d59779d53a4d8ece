"""Attention over paged KV, and the plain version beside it.

Promise: every query sees exactly the keys at its own and earlier positions of its sequence (within the layer's window), whatever
else is in the batch. Price: the blocks of the step's sequences are copied side by side once per layer (whole-block copies).
How: KV lies head-major, [2, kv_heads, blocks, block_size * head_dim], so a gather of blocks *is* the
[kv_heads, sequences, length, head_dim] that a batched product wants; queries that share a KV head ride as extra rows ("grouped
queries"), which on a CPU is 5 to 40 times faster than scaled_dot_product_attention's own grouping for single queries. Sequences with
few queries (decoding, verifying) go in one call per group of similar lengths; long chunks (prefill) one call each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Series
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["FEW", "KvCache", "Scores", "Span", "StepAttention", "block_bytes", "left", "order", "plain_attention"]

FEW = 17
"""Most queries of a sequence that ride with others': one token and the longest usual draft (draft_max). So decoding and verifying are one
call for all sequences; a longer chunk is a prompt's, with enough rows of its own that a call by itself costs nothing, while padding the
others to its length would cost as much again for each. Either side computes the same, up to the order of summation."""


@dataclass(frozen=True, slots=True)
class Scores:
    """How queries and keys become weights: softmax(cap(query · key * scale)), cap(s) = soft_cap * tanh(s / soft_cap) if there is one."""

    scale: float | None = None
    """None: 1 / sqrt(head_dim)."""
    soft_cap: float | None = None

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
        """q [n, heads, T, dim], keys and values [n, kv_heads, L, dim], mask True where seen -> [n, heads, T, dim]."""
        grouped = q.shape[1] != keys.shape[1]
        if self.soft_cap is None:
            return scaled_dot_product_attention(q, keys, values, mask, is_causal=causal, scale=self.scale, enable_gqa=grouped)
        if grouped:
            keys, values = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (keys, values))
        scores = q @ keys.transpose(-1, -2) * (self.scale or 1 / math.sqrt(q.shape[-1]))
        scores = (scores / self.soft_cap).tanh_().mul_(self.soft_cap)
        if causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril_()
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(-1, torch.promote_types(q.dtype, torch.float32)).to(q.dtype) @ values


PLAIN = Scores()


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive new tokens of one sequence: positions [start, start + length), KV in `blocks`."""

    start: int
    length: int
    blocks: Series[int]

    @property
    def end(self) -> int:
        """The first position after it: the number of keys its last token sees."""
        return self.start + self.length


class KvCache:
    """The KV blocks of all layers. Block `num_blocks` belongs to nobody: it pads, and what it holds is finite.

    `quantised`: int8 with a scale per token and head, widened to `dtype` after the gather.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        quantised: bool = False,
    ) -> None:
        self.num_blocks, self.block_size, self.num_kv_heads, self.head_dim = num_blocks, block_size, num_kv_heads, head_dim
        self.dtype, self.device, self.quantised = dtype, device, quantised
        self.bytes_per_block = block_bytes(num_layers, num_kv_heads, head_dim, block_size, dtype, quantised)
        self.kv_kind = f"torch-{'int8-' if quantised else ''}{str(dtype).removeprefix('torch.')}"
        shape = (num_layers, 2, num_kv_heads, num_blocks + 1, block_size * head_dim)
        self.layers = _zeros(shape, torch.int8 if quantised else dtype, device).unbind()  # zeros, for what is masked must still be finite
        self.scales = _zeros((*shape[:-1], block_size), torch.float32, device).unbind() if quantised else None

    def scratch(self, num_tokens: int) -> KvCache:
        """A cache of the same kind with room for one text, in its blocks 0, 1, …"""
        blocks, layers = -(-num_tokens // self.block_size), len(self.layers)
        return KvCache(layers, self.num_kv_heads, self.head_dim, blocks, self.block_size, self.dtype, self.device, self.quantised)

    def attend(self, spans: Series[Span], windows: Series[int | None], scores: Scores) -> StepAttention:
        """A step's attention; the spans come sorted by `order`."""
        return StepAttention(self, spans, windows, scores)

    def write(self, layer: int, slots: Tensor, kv: Tensor) -> None:
        """Store new keys and values, kv [2, kv_heads, T, head_dim], at `slots` [T] (block * block_size + offset)."""
        if self.scales is not None:
            kv, scales = _quantise(kv)
            self.scales[layer].view(2, self.num_kv_heads, -1).index_copy_(2, slots, scales)
        self.layers[layer].view(2, self.num_kv_heads, -1, self.head_dim).index_copy_(2, slots, kv)

    def clear(self, layer: int, slots: Tensor) -> None:
        """Zeros at `slots` [N]."""
        self.layers[layer].view(2, self.num_kv_heads, -1, self.head_dim).index_fill_(2, slots, 0)
        if self.scales is not None:
            self.scales[layer].view(2, self.num_kv_heads, -1).index_fill_(2, slots, 0)

    def read(self, layer: int, table: Tensor, num_sequences: int) -> Tensor:
        """The blocks of `table` [sequences * n] side by side: [2, kv_heads, sequences, n * block_size, head_dim]."""
        blocks = self.layers[layer].index_select(2, table).view(2, self.num_kv_heads, num_sequences, -1, self.head_dim)
        if self.scales is None:
            return blocks
        scales = self.scales[layer].index_select(2, table).view(2, self.num_kv_heads, num_sequences, -1, 1)
        return (blocks * scales).to(self.dtype)

    def copy_out(self, blocks: Series[int]) -> Tensor:
        """The blocks' bytes over all layers, in host memory: uint8 [len(blocks), bytes_per_block]."""
        index = torch.tensor(blocks, dtype=torch.long, device=self.device)
        parts = [layer.index_select(2, index).transpose(0, 2).reshape(len(blocks), -1) for layer in self._stores()]
        return torch.cat([part.contiguous().view(torch.uint8) for part in parts], 1).cpu()

    def copy_in(self, blocks: Series[int], data: Tensor) -> None:
        """What `copy_out` gave, into these blocks."""
        index, at = torch.tensor(blocks, dtype=torch.long, device=self.device), 0
        for layer in self._stores():
            shape = (len(blocks), layer.shape[1], 2, layer.shape[3])
            size = math.prod(shape[1:]) * layer.element_size()
            part = data[:, at : at + size].contiguous().view(layer.dtype).view(shape).to(self.device)
            layer.index_copy_(2, index, part.transpose(0, 2))
            at += size

    def _stores(self) -> list[Tensor]:
        return [*self.layers, *(self.scales or ())]


def block_bytes(num_layers: int, num_kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype, quantised: bool = False) -> int:
    """Memory of one block over all layers."""
    return num_layers * 2 * num_kv_heads * block_size * (head_dim + 4 if quantised else head_dim * dtype.itemsize)


def _quantise(kv: Tensor) -> tuple[Tensor, Tensor]:
    """kv [..., dim] as int8, and the scales [...] that let the largest of each fill the range."""
    kv = kv.float()
    scales = kv.abs().amax(-1) / 127
    return (kv / scales.clamp(min=1e-30)[..., None]).round_().to(torch.int8), scales


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that, on a CPU, take no memory before they are written to (numpy asks the system for pages it has not touched)."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)


class StepAttention:
    """The attention of one step: built once from the spans, called for every layer.

    The step's tokens lie flat, span after span; spans should come sorted by `order`. What is read and masked is zeros or the sequence's
    own: what former holders of a block left may be no number, and a weight of 0 makes nothing of a number, but not of NaN.
    """

    def __init__(self, cache: KvCache, spans: Series[Span], windows: Series[int | None], scores: Scores = PLAIN) -> None:
        self._cache, self._windows = cache, windows
        size, device = cache.block_size, cache.device
        slots = [span.blocks[p // size] * size + p % size for span in spans for p in range(span.start, span.end)]
        self._slots = torch.tensor(slots, device=device)
        unwritten = [slot for span in spans for slot in left(span, size)]
        self._left = torch.tensor(unwritten, device=device) if unwritten else None
        self._groups: list[_Few | _Long] = []
        row = 0
        for members in _grouped(spans, size):
            maker = _Few if members[0].length <= FEW else _Long
            self._groups.append(maker(cache, members, row, set(windows), scores))
            row += sum(span.length for span in members)

    def __call__(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        """q [T, heads, head_dim], kv [2, kv_heads, T, head_dim] of the step's tokens -> [T, heads * head_dim]."""
        self._cache.write(layer, self._slots, kv)
        if self._left is not None:
            self._cache.clear(layer, self._left)
        window = self._windows[layer]
        if len(self._groups) == 1:
            return self._groups[0].attend(layer, q, window)
        return torch.cat([group.attend(layer, q[group.rows], window) for group in self._groups])


def left(span: Span, size: int) -> range:
    """The slots behind a span in its last block, where the span is the first to write there."""
    offset, block = span.end % size, span.end // size
    return range(span.blocks[block] * size + offset, (span.blocks[block] + 1) * size) if 0 < offset <= span.length else range(0)


def _table(cache: KvCache, span: Span, count: int, windows: set[int | None]) -> list[int]:
    """`count` blocks: the span's own, as far as its tokens go; the block of nobody behind every window, and beyond."""
    seen = [0 if window is None else max(0, span.start + 1 - window) // cache.block_size for window in windows]
    own = span.blocks[min(seen) : -(-span.end // cache.block_size)]
    return [cache.num_blocks] * min(seen) + [*own] + [cache.num_blocks] * (count - min(seen) - len(own))


def order(span: Span) -> tuple[bool, int]:
    """Sort key that puts spans that can share a call next to each other."""
    return span.length > FEW, -span.end


def _grouped(spans: Series[Span], block_size: int) -> list[list[Span]]:
    """Runs of spans for one call each: long spans alone, others with those at least half as long (so padding at most doubles the work)."""
    groups: list[list[Span]] = []
    for span in spans:
        last = groups[-1] if groups else None
        fits = last and span.length <= FEW and last[0].length <= FEW and span.end * 2 + 2 * block_size >= last[0].end
        if last is not None and fits:
            last.append(span)
        else:
            groups.append([span])
    return groups


class _Few:
    """Sequences with a few queries each, padded to the most queries and the longest keys among them."""

    def __init__(self, cache: KvCache, spans: list[Span], row: int, windows: set[int | None], scores: Scores) -> None:
        self._cache, self._count, self._scores = cache, len(spans), scores
        lengths = [span.length for span in spans]
        self._most = most = max(lengths)
        self.rows = slice(row, row + sum(lengths))
        self._keys = keys = max(span.end for span in spans)
        num_blocks = -(-keys // cache.block_size)
        table = [block for span in spans for block in _table(cache, span, num_blocks, windows)]
        device = cache.device
        self._table = torch.tensor(table, device=device)
        self._pad: Tensor | None = None
        if min(lengths) < most:  # padded queries repeat their sequence's last one
            starts = [sum(lengths[:i]) for i in range(len(spans))]
            last = [s + n - 1 for s, n in zip(starts, lengths, strict=True)]
            pad = [min(s + j, e) for s, e in zip(starts, last, strict=True) for j in range(most)]
            self._pad = torch.tensor(pad, device=device)
            self._unpad = torch.tensor([i * most + j for i, n in enumerate(lengths) for j in range(n)], device=device)
        positions = [[min(span.start + j, span.end - 1) for j in range(most)] for span in spans]
        self._masks = {w: self._mask(positions, w) for w in windows}

    def _mask(self, positions: list[list[int]], window: int | None) -> Tensor | None:
        """[1, sequences, queries, keys] where True is seen; None where every query sees every key."""
        earliest = min(row[0] for row in positions)
        latest = max(row[-1] for row in positions)
        if earliest == self._keys - 1 and (window is None or latest < window):
            return None
        at = torch.tensor(positions, device=self._cache.device)[:, :, None]
        key = torch.arange(self._keys, device=self._cache.device)
        seen = key <= at
        if window is not None:
            seen &= key > at - window
        return seen[None]

    def attend(self, layer: int, q: Tensor, window: int | None) -> Tensor:
        cache = self._cache
        if self._pad is not None:
            q = q[self._pad]
        kv_heads, dim, most, count = cache.num_kv_heads, cache.head_dim, self._most, self._count
        heads = q.shape[1]
        group = heads // kv_heads
        keys, values = cache.read(layer, self._table, count)[..., : self._keys, :].unbind()
        rows = q.view(count, most, kv_heads, group, dim).permute(2, 0, 1, 3, 4).reshape(kv_heads, count, most * group, dim)
        mask = self._masks[window]
        if mask is not None and most > 1:
            mask = mask[:, :, :, None].expand(1, count, most, group, self._keys).reshape(1, count, most * group, self._keys)
        out = self._scores.attend(rows, keys, values, mask)
        flat = out.view(kv_heads, count, most, group, dim).permute(1, 2, 0, 3, 4).reshape(count * most, heads * dim)
        return flat if self._pad is None else flat[self._unpad]


class _Long:
    """One sequence with many queries."""

    def __init__(self, cache: KvCache, spans: list[Span], row: int, windows: set[int | None], scores: Scores) -> None:
        (self._span,) = spans
        self._cache, self._scores = cache, scores
        self.rows = slice(row, row + self._span.length)
        num_blocks = -(-self._span.end // cache.block_size)
        self._table = torch.tensor(_table(cache, self._span, num_blocks, windows), device=cache.device)
        self._masks = {w: _causal_mask(self._span.start, self._span.end, w, cache.device) for w in windows}

    def attend(self, layer: int, q: Tensor, window: int | None) -> Tensor:
        kv = self._cache.read(layer, self._table, 1)[..., : self._span.end, :]
        return _whole(q, kv[:, :, 0], self._masks[window], self._scores)


def _causal_mask(start: int, end: int, window: int | None, device: torch.device) -> Tensor | None:
    """[end - start, end] where True is seen; None where plain causality from position 0 says it all."""
    if start == 0 and (window is None or window >= end):
        return None
    at = torch.arange(start, end, device=device)[:, None]
    key = torch.arange(end, device=device)
    seen = key <= at
    return seen if window is None else seen & (key > at - window)


def _whole(q: Tensor, kv: Tensor, mask: Tensor | None, scores: Scores) -> Tensor:
    """q [n, heads, dim], kv [2, kv_heads, L, dim], mask [n, L] or None (causal, n == L) -> [n, heads * dim]."""
    keys, values = kv[:, None].unbind()
    out = scores.attend(q.transpose(0, 1)[None], keys, values, mask, causal=mask is None)
    return out[0].transpose(0, 1).reshape(q.shape[0], -1)


def plain_attention(q: Tensor, keys: Tensor, values: Tensor, start: int, window: int | None = None) -> Tensor:
    """The definition: q [n, heads, dim] at positions start…, keys and values [L, kv_heads, dim] at 0… -> [n, heads, dim]."""
    n, heads, dim = q.shape
    out = torch.empty_like(q)
    for i in range(n):
        first = 0 if window is None else max(0, start + i + 1 - window)
        for head in range(heads):
            shared = head // (heads // keys.shape[1])
            scores = keys[first : start + i + 1, shared] @ q[i, head] / math.sqrt(dim)
            out[i, head] = torch.softmax(scores, 0) @ values[first : start + i + 1, shared]
    return out
