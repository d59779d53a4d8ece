"""The source's side: slices in order, a last stage that stops the stream, and a reader who is told only then."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from serve.engine.kv_blocks import KvBlocks
from serve.engine_thread import Gone
from serve.migrate import Moved, Standing
from serve.moves.lend import Lender

HASHES = tuple(bytes([i]) for i in range(10))
LAST = Moved(None)


class Thread:
    """An engine's thread that has one stream of ten blocks, of which one more is computed with every question."""

    def __init__(self, num_blocks: int = 7) -> None:
        self.num_blocks, self.asked, self.stopped = num_blocks, [], False

    def look(self, stream: str) -> Future[Standing]:
        return self.answer(lambda: Standing(HASHES[: self.num_blocks], 99, 1))

    def ask(self, question: Callable[[Any], Any]) -> Future[Any]:
        return self.answer(lambda: question(self))

    def give_up(self, stream: str, first: int) -> Future[Any]:
        return self.answer(lambda: (LAST, self.kv_out(stream, first, None)))

    def kv_out(self, stream: str, first: int, last: int | None) -> KvBlocks:
        hashes = HASHES[: self.num_blocks][first:last]
        self.asked.append((first, last))
        self.num_blocks = min(self.num_blocks + 1, len(HASHES))
        return KvBlocks("kind", 4, b"", hashes, np.zeros((len(hashes), 4), np.uint8))

    def answer(self, answer: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        if self.stopped:
            future.set_exception(Gone("r"))
        else:
            future.set_result(answer())
        return future


def stage(thread: Any, first: int, last: bool, told: list[Any]) -> list[tuple[bytes, ...]]:
    async def scenario() -> list[tuple[bytes, ...]]:
        lender = Lender(thread, told.extend, block_bytes=4)
        found = []
        async for blocks in lender.stage("r", first, len((await lender.look("r")).hashes), last):
            assert told == []
            found.append(blocks.hashes)
        return found

    return asyncio.run(scenario())


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.engine.kv_blocks.SLICE_BYTES", 12)  # three blocks


def test_a_stage_gives_what_there_was_when_it_began_in_slices() -> None:
    told: list[Any] = []
    assert stage(Thread(), 2, False, told) == [HASHES[2:5], HASHES[5:7]]
    assert stage(Thread(), 7, False, told) == []
    assert told == []


def test_the_last_stage_gives_what_came_meanwhile_too_and_then_tells_the_reader() -> None:
    told: list[Any] = []
    assert stage(Thread(), 2, True, told) == [HASHES[2:5], HASHES[5:8]]
    assert told == [("r", LAST)]


def test_a_last_stage_may_bring_nothing() -> None:
    told: list[Any] = []
    assert stage(Thread(), 1 << 62, True, told) == [()]
    assert told == [("r", LAST)]


def test_a_stream_that_is_not_here_is_gone() -> None:
    thread = Thread()
    thread.stopped = True
    with pytest.raises(Gone):
        stage(thread, 0, True, [])


def test_a_look_tells_how_much_time_there_is_now() -> None:
    async def scenario() -> list[float]:
        left = [9.0, 2.0]
        lender = Lender(Thread(), lambda news: None, 4, lambda: left.pop(0))  # type: ignore[arg-type]
        return [(await lender.look("r")).left_s for _ in range(2)]

    assert asyncio.run(scenario()) == [9.0, 2.0]
