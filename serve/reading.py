"""Embeddings in a replica: its engine reads the texts between the steps of its streams.

Promise: a live stream waits for one pass at most, of as many tokens as a step may read, then takes its step; an asker who goes away stops
the reading at the next pass. Price: a note to the engine's thread per pass. It knows neither Ray nor torch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.engine_thread import EngineThread

__all__ = ["embedded"]


async def embedded(thread: EngineThread, texts: Sequence[Sequence[int]], adapter: str) -> NDArray[np.float32]:
    """[n, hidden], each of length 1. ValueError for texts that the engine cannot read."""

    def begin(engine: Any) -> Generator[int, None, Any]:
        passes: Generator[int, None, Any] = engine.embedding(texts, adapter=adapter)
        return passes

    passes = await asyncio.wrap_future(thread.ask(begin, reading=True))
    while (found := await asyncio.wrap_future(thread.ask(lambda _: _next(passes), reading=True))) is None:
        pass
    vectors: NDArray[np.float32] = found.float().cpu().numpy()
    return vectors


def _next(passes: Generator[int, None, Any]) -> Any:
    """One pass; what comes of all of them, if that was the last."""
    try:
        next(passes)
    except StopIteration as end:
        return end.value
    return None
