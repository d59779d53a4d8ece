"""The one place that touches the device: a batch of chunks in, logits out.

Promise: `run` makes the batch's copies, computes the KV of every token in it and returns the logits after each token that is drawn
from, in the batch's own order; `logits` and `hidden` are those of decoding the text, by the same kernels, and leave the KV blocks
alone. Price: one pass of the model; for a text, KV blocks of its own meanwhile.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Series
from typing import Any

import torch
from torch import Tensor

from serve.engine.adapters import AdapterSet
from serve.engine.attention import KvCache, Scores, Span, order
from serve.engine.batch import Batch, Chunk
from serve.engine.cuda import DecodeGraphs
from serve.engine.model import Model
from serve.engine.native.cache import NativeCache
from serve.engine.score import Piece

__all__ = ["BlockReader", "HostMemory", "Runner"]


class HostMemory:
    """Copies of blocks whose sequences wait, by key."""

    def __init__(self, cache: KvCache | NativeCache) -> None:
        self._cache = cache
        self._copies: dict[int, Tensor] = {}

    def follow(self, batch: Batch) -> None:
        """Make the batch's copies: all out, then all in."""
        for key, blocks in batch.copies_out:
            self._copies[key] = self._cache.copy_out(blocks)
        for key, blocks in batch.copies_in:
            if blocks:
                copy = self._copies.pop(key)
                self._cache.copy_in(blocks, copy[len(copy) - len(blocks) :])
            else:  # dropped; a step that failed may not have made it
                self._copies.pop(key, None)


class BlockReader(ABC):
    """Reads texts into blocks of their own, by the kernels that decode: what every runner over KV blocks has."""

    reads_in_parts = True
    cache: KvCache | NativeCache

    def logits(self, tokens: Series[int]) -> Tensor:
        """Logits [T, vocab] after every token of a text, in one pass: what reading in parts (score.py) is held to."""
        return self._whole(tokens, states=False)

    def hidden(self, tokens: Series[int]) -> Tensor:
        """The last hidden states [T, hidden] of a text, after the final norm."""
        return self._whole(tokens, states=True)

    def _whole(self, tokens: Series[int], states: bool) -> Tensor:
        cache = self.scratch(len(tokens))
        return self.read(cache, [Piece(0, tokens, range(cache.num_blocks), len(tokens))], states=states)

    def scratch(self, num_tokens: int) -> KvCache | NativeCache:
        """KV blocks for texts that nobody asked to go on."""
        return self.cache.scratch(num_tokens)

    @abstractmethod
    def read(self, cache: Any, pieces: Series[Piece], *, states: bool, adapter: str = "", out: Tensor | None = None) -> Tensor:
        """As `score.Reader.read`; `cache`: what `scratch` gave."""


class Runner(BlockReader):
    """A model, operator by operator, and its KV blocks."""

    def __init__(self, model: Model, cache: KvCache | NativeCache, adapters: AdapterSet, graphs: DecodeGraphs | None = None) -> None:
        """`graphs`: for steps of a fixed form, where there are any."""
        self.model, self.cache, self.adapters, self._graphs = model, cache, adapters, graphs
        self._scores = Scores(model.shape.attention_scale, model.shape.attention_soft_cap)
        self._host = HostMemory(cache)

    def run(self, batch: Batch) -> Tensor:
        """Logits [R, vocab]: for each sampling chunk in turn, after its last known token and after each drafted one."""
        self._host.follow(batch)
        return self.compute(batch.chunks)

    @torch.inference_mode()
    def compute(self, chunks: Series[Chunk]) -> Tensor:
        """The pass itself."""
        if not chunks:
            return torch.empty(0, self.model.shape.vocab_size)
        if self._graphs is not None and (logits := self._graphs.run(chunks)) is not None:
            return logits
        spans = {id(c): Span(c.start, c.end - c.start, c.sequence.blocks) for c in chunks}
        sorted_chunks = sorted(chunks, key=lambda c: order(spans[id(c)]))
        tokens: list[int] = []
        positions: list[int] = []
        last_row: dict[int, int] = {}
        for chunk in sorted_chunks:
            tokens += chunk.tokens
            positions += range(chunk.start, chunk.end)
            last_row[id(chunk)] = len(tokens)
        rows = [row for c in chunks if c.samples for row in range(last_row[id(c)] - len(c.draft) - 1, last_row[id(c)])]
        attend = self.cache.attend([spans[id(c)] for c in sorted_chunks], self.model.shape.windows, self._scores)
        device = self.model.device
        index = None if len(rows) == len(tokens) and rows == list(range(len(rows))) else torch.tensor(rows, dtype=torch.long, device=device)
        adapters = self.adapters.step((c.sequence.request.adapter, c.end - c.start) for c in sorted_chunks)
        return self.model.forward(torch.tensor(tokens, device=device), torch.tensor(positions, device=device), attend, index, adapters)

    @torch.inference_mode()
    def read(
        self, cache: KvCache | NativeCache, pieces: Series[Piece], *, states: bool, adapter: str = "", out: Tensor | None = None
    ) -> Tensor:
        """As `score.Reader.read`; the pieces come sorted by `order`."""
        attend = cache.attend([piece.span for piece in pieces], self.model.shape.windows, self._scores)
        device = self.model.device
        tokens = torch.tensor([token for piece in pieces for token in piece.tokens], device=device)
        positions = torch.cat([torch.arange(piece.start, piece.span.end, device=device) for piece in pieces])
        adapters = self.adapters.step([(adapter, len(tokens))])
        at, rows = 0, []
        for piece in pieces:
            at += len(piece.tokens)
            rows += range(at - piece.num_rows, at)
        index = None if len(rows) == len(tokens) else torch.tensor(rows, dtype=torch.long, device=device)
        if states:
            rows = self.model.hidden(tokens, positions, attend, adapters)
            rows = rows if index is None else rows[index]
        else:
            rows = self.model.forward(tokens, positions, attend, index, adapters)
        return rows if out is None else out.copy_(rows)
