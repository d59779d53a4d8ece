"""The one place that touches the device: a batch of chunks in, logits out.

Promise: `run` computes the KV of every token in the batch and returns the logits after each token that is drawn from. Price: one
pass of the model. The batch's spans are sorted for attention here, and the logits come back in the batch's own order.
"""

from __future__ import annotations

from collections.abc import Sequence as Series

import torch
from torch import Tensor

from serve.engine.adapters import AdapterSet
from serve.engine.attention import KvCache, Scores, Span, StepAttention, WholeAttention, order
from serve.engine.model import Model
from serve.engine.schedule import Batch

__all__ = ["Runner"]


class Runner:
    """A model and its KV blocks."""

    def __init__(self, model: Model, cache: KvCache, adapters: AdapterSet) -> None:
        self.model, self.cache, self.adapters = model, cache, adapters
        self._scores = Scores(model.shape.attention_scale, model.shape.attention_soft_cap)

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor:
        """Logits [R, vocab]: for each sampling chunk in turn, after its last known token and after each drafted one."""
        spans = {id(c): Span(c.start, c.end - c.start, c.sequence.blocks) for c in batch.chunks}
        sorted_chunks = sorted(batch.chunks, key=lambda c: order(spans[id(c)]))
        tokens: list[int] = []
        positions: list[int] = []
        last_row: dict[int, int] = {}
        for chunk in sorted_chunks:
            tokens += chunk.tokens
            positions += range(chunk.start, chunk.end)
            last_row[id(chunk)] = len(tokens)
        rows = [row for c in batch.sampling for row in range(last_row[id(c)] - len(c.draft) - 1, last_row[id(c)])]
        attend = StepAttention(self.cache, [spans[id(c)] for c in sorted_chunks], self.model.shape.windows, self._scores)
        device = self.model.device
        index = None if len(rows) == len(tokens) and rows == list(range(len(rows))) else torch.tensor(rows, dtype=torch.long, device=device)
        adapters = self.adapters.step((c.sequence.request.adapter, c.end - c.start) for c in sorted_chunks)
        return self.model.forward(torch.tensor(tokens, device=device), torch.tensor(positions, device=device), attend, index, adapters)

    @torch.inference_mode()
    def logits(self, tokens: Series[int]) -> Tensor:
        """Logits [T, vocab] after every token of a text, in one pass that leaves the KV blocks alone."""
        device = self.model.device
        attend = WholeAttention(len(tokens), self.model.shape.windows, device, self._scores)
        return self.model.forward(torch.tensor(list(tokens), device=device), torch.arange(len(tokens), device=device), attend)
