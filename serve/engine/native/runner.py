"""A runner whose step is one native call, and piecewise only for requests with LoRA adapters.

Promise: as `runner.Runner`; which way a request is computed depends on the request alone (its adapter), so its tokens, too. Price: a
step with and without adapters makes two passes. The piecewise model is built when the first adapter is met, on the decoder's
own matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Series

import torch
from torch import Tensor

from serve.engine.adapters import AdapterSet
from serve.engine.batch import Batch, Chunk
from serve.engine.model import Model
from serve.engine.native.cache import NativeCache
from serve.engine.native.decoder import NativeDecoder, Pass
from serve.engine.runner import BlockReader, HostMemory, Runner
from serve.engine.score import Piece

__all__ = ["NativeRunner"]


class NativeRunner(BlockReader):
    """A native decoder and its KV blocks."""

    def __init__(self, decoder: NativeDecoder, cache: NativeCache, adapters: AdapterSet, model: Callable[[], Model]) -> None:
        self.model, self.cache, self.adapters = decoder, cache, adapters
        self._host = HostMemory(cache)
        self._build, self._pieces = model, None

    def run(self, batch: Batch) -> Tensor:
        """As `Runner.run`."""
        self._host.follow(batch)
        chunks = batch.chunks
        adapted = [chunk for chunk in chunks if chunk.sequence.request.adapter]
        if not adapted:
            return self._decode(chunks)
        plain = self._decode([chunk for chunk in chunks if not chunk.sequence.request.adapter])
        return _merged(chunks, plain, self._piecewise.compute(adapted))

    @property
    def _piecewise(self) -> Runner:
        if self._pieces is None:
            self._pieces = Runner(self._build(), self.cache, self.adapters)
        return self._pieces

    def _decode(self, chunks: Series[Chunk]) -> Tensor:
        work = Pass()
        for chunk in chunks:
            work.add(chunk.start, chunk.tokens, chunk.sequence.blocks, len(chunk.draft) + 1 if chunk.samples else 0)
        return self.model.run(work, self.cache)

    def read(self, cache: NativeCache, pieces: Series[Piece], *, states: bool, adapter: str = "", out: Tensor | None = None) -> Tensor:
        """As `score.Reader.read`."""
        if adapter:
            return self._piecewise.read(cache, pieces, states=states, adapter=adapter, out=out)
        work = Pass()
        for piece in pieces:
            work.add(piece.start, list(piece.tokens), list(piece.blocks), piece.num_rows)
        return self.model.run(work, cache, states, out)


def _merged(chunks: Series[Chunk], plain: Tensor, adapted: Tensor) -> Tensor:
    """Rows of two passes in the chunks' own order."""
    at, parts = [0, 0], []
    for chunk in chunks:
        if chunk.samples:
            which = int(bool(chunk.sequence.request.adapter))
            count = len(chunk.draft) + 1
            parts.append((plain, adapted)[which][at[which] : at[which] + count])
            at[which] += count
    return torch.cat(parts) if parts else plain
