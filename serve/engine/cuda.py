"""Decoding steps of fixed form, so that a GPU replays them as one CUDA graph instead of launching hundreds of small kernels.

Promise: the logits of `Runner.compute` (up to the order of summation), with one copy of integers in and no waiting for the device inside
the step. Price: sequences, queries and blocks are padded up to the next form, at most doubling the attention's work; a form is
captured when it is first met. Steps with long chunks, adapters or experts are not of a fixed form: `run` leaves them to the caller.
How: tokens, positions, KV slots, block tables and wanted rows lie in one static buffer per form. Padding computes too, but writes to the
block that belongs to nobody, which is cleared in every layer before anything is read: a masked key that is no number would still make
its row none, so neither what padding computes beside a sequence that has overflowed, nor what former holders left in a block (cleared
where its new holder begins it, as in attention.py) may stay. Without capture the same step runs anywhere: so it is tested on a CPU.
Source: CUDA graphs by padded batch size as in vLLM and nano-vllm.
"""

from __future__ import annotations

from collections.abc import Sequence as Series
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from serve.engine.attention import FEW, KvCache, Scores, Span, left
from serve.engine.batch import Chunk
from serve.engine.model import Model

__all__ = ["DecodeGraphs", "Form"]

QUERIES = (1, 4, 8, FEW)
"""Tokens per sequence that a form holds: a plain step, and drafts."""
LEAST_BLOCKS = 8


@dataclass(frozen=True, slots=True)
class Form:
    """What a step is padded to."""

    sequences: int
    queries: int
    blocks: int

    @classmethod
    def around(cls, chunks: Series[Chunk]) -> Form | None:
        """The smallest form that holds these chunks; None if none does."""
        most = max((chunk.end - chunk.start for chunk in chunks), default=0)
        queries = next((n for n in QUERIES if n >= most), None)
        if not most or queries is None or any(chunk.sequence.request.adapter for chunk in chunks):
            return None
        blocks = max(len(chunk.sequence.blocks) for chunk in chunks)
        return cls(_power(len(chunks)), queries, max(LEAST_BLOCKS, _power(blocks)))


def _power(n: int) -> int:
    """The least power of two that is at least n.

    >>> [_power(n) for n in (1, 2, 3, 9)]
    [1, 2, 4, 16]
    """
    return 1 << (n - 1).bit_length()


class DecodeGraphs:
    """The forms met so far, each with its buffers and, on a GPU, its graph."""

    def __init__(self, model: Model, cache: KvCache, *, capture: bool) -> None:
        """`capture`: record CUDA graphs; else run the same steps operator by operator."""
        assert not any(model.shape.sparse), "which experts run is decided on the host"
        self._model, self._cache, self._capture = model, cache, capture
        self._frames: dict[Form, _Frame] = {}

    @torch.inference_mode()
    def run(self, chunks: Series[Chunk]) -> Tensor | None:
        """As `Runner.compute`, in a buffer that the next step overwrites; None for a step that fits no form."""
        form = Form.around(chunks)
        if form is None:
            return None
        frame = self._frames.get(form)
        if frame is None:
            frame = self._frames[form] = _Frame(self._model, self._cache, form, self._capture)
        return frame.run(chunks)


class _Frame:
    """One form: the static buffers, and the step over them."""

    def __init__(self, model: Model, cache: KvCache, form: Form, capture: bool) -> None:
        self._model, self._cache, self._form = model, cache, form
        shape = model.shape
        tokens = form.sequences * form.queries
        unwritten = form.sequences * cache.block_size + 1  # and always one slot of nobody's
        sizes = {
            "tokens": tokens,
            "positions": tokens,
            "slots": tokens,
            "rows": tokens,
            "tables": form.sequences * form.blocks,
            "unwritten": unwritten,
        }
        self._host = torch.zeros(sum(sizes.values()), dtype=torch.long, pin_memory=capture)
        self._device = torch.zeros_like(self._host, device=cache.device)
        self._staged = dict(zip(sizes, np.split(self._host.numpy(), np.cumsum(list(sizes.values()))[:-1]), strict=True))
        self._buffers = dict(zip(sizes, self._device.split(list(sizes.values())), strict=True))
        self._scores = Scores(shape.attention_scale, shape.attention_soft_cap)
        self._windows = shape.windows
        self._fill([])
        self._graph = self._captured() if capture else None

    def run(self, chunks: Series[Chunk]) -> Tensor:
        num_rows = self._fill(chunks)
        if self._graph is None:
            return self._step()[:num_rows]
        self._graph.replay()
        return self._logits[:num_rows]

    def _fill(self, chunks: Series[Chunk]) -> int:
        """Lay the chunks into the buffers, one row of queries each, and send them off; the number of wanted rows."""
        form, size, nobody = self._form, self._cache.block_size, self._cache.num_blocks
        tokens, positions, slots, tables = (
            self._staged[name].reshape(form.sequences, -1) for name in ("tokens", "positions", "slots", "tables")
        )
        tokens[:], positions[:], slots[:], tables[:] = 0, 0, nobody * size, nobody
        rows: list[int] = []
        unwritten: list[int] = []
        for i, chunk in enumerate(chunks):
            length, blocks = chunk.end - chunk.start, np.asarray(chunk.sequence.blocks)
            at = np.arange(chunk.start, chunk.end)
            tokens[i, :length], positions[i, :length], positions[i, length:] = chunk.tokens, at, chunk.end - 1
            slots[i, :length] = blocks[at // size] * size + at % size
            seen = slice(chunk.sequence.num_behind, -(-chunk.end // size))  # its own, and behind no window
            tables[i, seen] = blocks[seen]
            unwritten += left(Span(chunk.start, length, chunk.sequence.blocks), size)
            if chunk.samples:
                rows += range(i * form.queries + length - len(chunk.draft) - 1, i * form.queries + length)
        self._staged["rows"][:] = 0
        self._staged["rows"][: len(rows)] = rows
        self._staged["unwritten"][:] = nobody * size
        self._staged["unwritten"][: len(unwritten)] = unwritten
        self._device.copy_(self._host, non_blocking=True)
        return len(rows)

    def _step(self) -> Tensor:
        """Logits [sequences * queries, vocab] of the buffers' rows."""
        form, at = self._form, self._buffers
        positions = at["positions"].view(form.sequences, form.queries, 1)
        keys = torch.arange(form.blocks * self._cache.block_size, device=self._cache.device)
        masks = {}
        for window in set(self._windows):
            seen = keys <= positions
            masks[window] = seen if window is None else seen & (keys > positions - window)

        def attend(layer: int, q: Tensor, kv: Tensor) -> Tensor:
            return self._attend(layer, q, kv, masks[self._windows[layer]])

        return self._model.forward(at["tokens"], at["positions"], attend, at["rows"])

    def _attend(self, layer: int, q: Tensor, kv: Tensor, mask: Tensor) -> Tensor:
        """`model.Attend` with mask [sequences, queries, keys]; heads of one KV head ride as further queries."""
        form, cache = self._form, self._cache
        kv_heads, dim = cache.num_kv_heads, cache.head_dim
        group = q.shape[1] // kv_heads
        cache.write(layer, self._buffers["slots"], kv)
        cache.clear(layer, self._buffers["unwritten"])
        keys, values = cache.read(layer, self._buffers["tables"], form.sequences).unbind()
        rows = q.view(form.sequences, form.queries, kv_heads, group, dim).permute(2, 0, 1, 3, 4).reshape(kv_heads, form.sequences, -1, dim)
        seen = mask[None, :, :, None].expand(1, form.sequences, form.queries, group, mask.shape[-1]).flatten(2, 3)
        out = self._scores.attend(rows, keys, values, seen)
        return out.view(kv_heads, form.sequences, form.queries, group, dim).permute(1, 2, 0, 3, 4).reshape(len(q), -1)

    def _captured(self) -> torch.cuda.CUDAGraph:
        """The step as a graph; two runs before it let libraries allocate what they keep."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                self._step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._logits = self._step()
        return graph
