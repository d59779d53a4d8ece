"""The destination's side: when a stage is the last, what is learnt about the link, and whose failure is whose."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from serve.engine.kv_blocks import KvBlocks
from serve.engine_thread import Gone
from serve.handover import MAX_STAGES
from serve.migrate import Pulled, Standing
from serve.pull import NO_MORE, Puller

BLOCK_BYTES = 1 << 20


class Thread:
    """A destination's engine that has room for so many blocks."""

    def __init__(self, room: int = 1000, missing: tuple[int, ...] | None = None) -> None:
        self.failure: Exception | None = None
        self.room, self.missing, self.taken = room, missing, 0

    def ask(self, question: Callable[[Any], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        if self.failure is not None:
            future.set_exception(RuntimeError("the engine failed"))
        else:
            future.set_result(question(self))
        return future

    def kv_missing(self, hashes: tuple[bytes, ...], ticket: str) -> tuple[int, ...]:
        return tuple(range(len(hashes))) if self.missing is None else self.missing

    def kv_in(self, ticket: str, blocks: KvBlocks) -> int:
        here = min(len(blocks.hashes), self.room - self.taken)
        self.taken += here
        return here


class Lends:
    """A source that computes `growth` blocks during each stage, which takes `stage_s`."""

    def __init__(self, growth: int = 1, stage_s: float = 0.0, fails: Exception | None = None, fails_in: int = 1) -> None:
        self.num_blocks, self.growth, self.stage_s = 20, growth, stage_s
        self.fails, self.fails_in, self.stages = fails, fails_in, []

    async def look(self) -> Standing:
        return Standing(tuple(bytes([i]) for i in range(self.num_blocks)), self.num_blocks * 16 + 5, 1)

    async def stage(self, first: int, *, last: bool) -> AsyncIterator[KvBlocks]:
        self.stages.append((first, last))
        if self.fails is not None and len(self.stages) >= self.fails_in:
            raise self.fails
        await asyncio.sleep(self.stage_s)
        hashes = tuple(bytes([i]) for i in range(first, self.num_blocks))
        self.num_blocks += self.growth
        yield KvBlocks("kind", BLOCK_BYTES, b"", hashes, np.zeros((len(hashes), BLOCK_BYTES), np.uint8))


def pull(thread: Any, lends: Any, left_s: float = 60.0, tokens_per_s: float = 100.0) -> tuple[Pulled, Puller]:
    puller = Puller(thread, block_size=16, block_bytes=BLOCK_BYTES, tokens_per_s=lambda: tokens_per_s)
    return asyncio.run(puller.pull(lends, "t", left_s)), puller


def test_after_a_short_stage_comes_the_last() -> None:
    lends = Lends()
    pulled, _ = pull(Thread(), lends)
    assert lends.stages == [(0, False), (20, True)]
    assert (pulled.how, pulled.stages, pulled.num_bytes) == ("kv", 2, 21 * BLOCK_BYTES)


def test_long_stages_go_on_while_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.handover.SHORT_S", 0.0)
    lends = Lends(growth=0)
    assert pull(Thread(), lends)[0].stages == MAX_STAGES + 1
    assert [last for _, last in lends.stages] == [False] * MAX_STAGES + [True]
    assert pull(Thread(), Lends(stage_s=0.05), left_s=1.3)[0].stages < MAX_STAGES


def test_what_is_here_already_does_not_travel() -> None:
    lends = Lends(growth=0)
    assert pull(Thread(missing=(18, 19)), lends)[0].num_bytes == 2 * BLOCK_BYTES
    assert lends.stages[0] == (18, False)


def test_a_stream_not_worth_copying_is_only_stopped() -> None:
    lends = Lends()
    pulled, _ = pull(Thread(), lends, tokens_per_s=1e9)
    assert lends.stages == [(NO_MORE, True)]
    assert (pulled.how, pulled.num_bytes) == ("recompute", 0)


def test_without_room_the_rest_is_left_behind() -> None:
    lends = Lends()
    pulled, _ = pull(Thread(room=5), lends)
    assert lends.stages == [(0, False), (NO_MORE, True)]
    assert pulled.reason.endswith("; no room beyond block 5")


def test_the_link_is_learnt_from_what_it_carried() -> None:
    before, puller = pull(Thread(), Lends(stage_s=0.1))
    assert before.how == "kv"
    assert 20 * BLOCK_BYTES / 10 < puller.link.per_s < 21 * BLOCK_BYTES / 0.1


def test_a_lost_source_is_a_crash_a_stream_that_has_left_is_none_and_ones_own_failure_is_raised() -> None:
    assert pull(Thread(), Lends(fails=Gone("r")))[0].reason == "it left its source before it was taken over"
    pulled, _ = pull(Thread(), Lends(fails=RuntimeError("died\nwith a trace")))
    assert (pulled.how, pulled.reason) == ("crash", "the source was lost in stage 1: RuntimeError: died")
    pulled, _ = pull(Thread(), Lends(fails=Gone("r"), fails_in=2))
    assert (pulled.how, pulled.num_bytes) == ("kv", 20 * BLOCK_BYTES)
    assert pulled.reason == "it left its source before it was taken over to its end"
    thread = Thread()
    thread.failure = ValueError("out of memory")
    with pytest.raises(RuntimeError, match="the engine failed"):
        pull(thread, Lends())


def test_a_stage_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.pull.STAGE_S", 0.02)
    began = time.monotonic()
    pulled, _ = pull(Thread(), Lends(stage_s=60.0))
    assert pulled.how == "crash"
    assert time.monotonic() - began < 10.0
