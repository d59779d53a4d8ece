"""Embeddings in a replica: streams step between the passes, and who goes away stops them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.request import Emission, Request, Sampling
from serve.engine_thread import EngineThread, News
from serve.reading import embedded

LONG = [[5, 6, 7] * 100, [8] * 40]


@pytest.fixture
def engine(tiny_model_dir: Path) -> Engine:
    return Engine.load(tiny_model_dir, EngineConfig(dtype="float64", num_threads=1, max_tokens_per_step=32, max_sequences=4))


def thread_of(engine: Engine) -> tuple[EngineThread, list[News]]:
    news: list[News] = []
    return EngineThread(engine, news.extend, lambda error: None), news


def test_they_are_the_engines_own(engine: Engine) -> None:
    want = engine.embed(LONG).float().numpy()
    thread, _ = thread_of(engine)
    np.testing.assert_allclose(asyncio.run(embedded(thread, LONG, "")), want, atol=1e-7)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        asyncio.run(embedded(thread, [[400]], ""))


def test_a_live_stream_takes_a_step_between_passes(engine: Engine) -> None:
    thread, news = thread_of(engine)
    request = Request(id="live", prompt=(5, 6), sampling=Sampling(max_tokens=400, ignore_eos=True))

    async def scene() -> int:
        thread.add(request)
        before = len(news)
        await embedded(thread, LONG, "")
        return len(news) - before

    assert asyncio.run(scene()) >= 8, "eleven passes"
    assert all(isinstance(what, Emission) for _, what in news)


def test_who_goes_away_stops_them(engine: Engine) -> None:
    thread, _ = thread_of(engine)
    passes = 0
    read = engine.runner.read

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal passes
        passes += 1
        return read(*args, **kwargs)  # type: ignore[arg-type]

    engine.runner.read = counted  # type: ignore[method-assign, assignment]

    async def scene() -> None:
        task = asyncio.create_task(embedded(thread, [[5] * 500] * 200, ""))
        while passes < 3:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.wrap_future(thread.ask(lambda engine: None))

    asyncio.run(scene())
    assert passes < 100, "of 3,200"
