"""The destination's side: when a stage is the last, what is learnt about the link, whose failure is whose, and what is kept."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from serve.engine.kv_blocks import KvBlocks
from serve.engine.request import Sampling
from serve.engine_thread import Gone
from serve.migrate import Pulled, Standing
from serve.moves.handover import MAX_STAGES
from serve.moves.pull import NO_MORE, Puller

BLOCK_BYTES = 1 << 20


class Thread:
    """A destination's engine that has room for so many blocks."""

    def __init__(self, room: int = 1000, missing: tuple[int, ...] | None = None) -> None:
        self.failure: Exception | None = None
        self.room, self.missing, self.taken, self.kept = room, missing, 0, set()

    def ask(self, question: Callable[[Any], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        if self.failure is not None:
            future.set_exception(RuntimeError("the engine failed"))
        else:
            future.set_result(question(self))
        return future

    def kv_missing(self, hashes: tuple[bytes, ...], ticket: str) -> tuple[int, ...]:
        self.kept.add(ticket)
        return tuple(range(len(hashes))) if self.missing is None else self.missing

    def kv_release(self, ticket: str) -> None:
        self.kept.discard(ticket)

    def kv_in(self, ticket: str, blocks: KvBlocks) -> int:
        self.kept.add(ticket)
        here = min(len(blocks.hashes), self.room - self.taken)
        self.taken += here
        return here


class Lends:
    """A source that computes `growth` blocks during each stage, which takes `stage_s`, each of its slices in turn."""

    def __init__(
        self, growth: int = 1, stage_s: float = 0.0, fails: Exception | None = None, fails_in: int = 1, num_slices: int = 1
    ) -> None:
        self.num_blocks, self.growth, self.stage_s, self.num_slices = 20, growth, stage_s, num_slices
        self.fails, self.fails_in, self.stages, self.left_s = fails, fails_in, [], math.inf
        self.sampling = Sampling(regex="a+")

    async def look(self) -> Standing:
        return Standing(tuple(bytes([i]) for i in range(self.num_blocks)), self.num_blocks * 16 + 5, 1, self.left_s, self.sampling)

    async def stage(self, first: int, end: int, *, last: bool) -> AsyncIterator[KvBlocks]:
        self.stages.append((first, last))
        if self.fails is not None and len(self.stages) >= self.fails_in:
            raise self.fails
        there = range(first, self.num_blocks if last else min(end, self.num_blocks))
        self.num_blocks += self.growth
        for i in range(self.num_slices):
            await asyncio.sleep(self.stage_s / self.num_slices)
            hashes = tuple(bytes([n]) for n in there[i * len(there) // self.num_slices : (i + 1) * len(there) // self.num_slices])
            yield KvBlocks("kind", BLOCK_BYTES, b"", hashes, np.zeros((len(hashes), BLOCK_BYTES), np.uint8))


async def nothing(_: Sampling | None) -> None:
    """Nothing has to be made ready."""


def pull(thread: Any, lends: Any, left_s: float = 60.0, tokens_per_s: float = 100.0) -> tuple[Pulled, Puller]:
    puller = Puller(thread, block_size=16, block_bytes=BLOCK_BYTES, tokens_per_s=lambda: tokens_per_s, make_ready=nothing)
    return asyncio.run(puller.pull(lends, "t", left_s)), puller


def test_after_a_short_stage_comes_the_last() -> None:
    lends = Lends()
    pulled, _ = pull(Thread(), lends)
    assert lends.stages == [(0, False), (20, True)]
    assert (pulled.how, pulled.stages, pulled.num_bytes) == ("kv", 2, 21 * BLOCK_BYTES)


def test_what_the_stream_asks_for_is_made_ready_while_it_goes_on() -> None:
    lends, made = Lends(), []

    async def make_ready(sampling: Sampling | None) -> None:
        made.append((sampling, list(lends.stages)))

    puller = Puller(Thread(), block_size=16, block_bytes=BLOCK_BYTES, tokens_per_s=lambda: 100.0, make_ready=make_ready)  # type: ignore[arg-type]
    asyncio.run(puller.pull(lends, "t", 60.0))
    assert made == [(lends.sampling, [])]


def test_long_stages_go_on_while_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.moves.handover.SHORT_S", 0.0)
    lends = Lends(growth=2)
    assert pull(Thread(), lends)[0].stages == MAX_STAGES + 1
    assert [last for _, last in lends.stages] == [False] * MAX_STAGES + [True]
    assert pull(Thread(), Lends(growth=2, stage_s=0.05), left_s=1.3)[0].stages < MAX_STAGES


def test_when_no_more_than_a_block_comes_the_next_stage_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine whose every stage takes long it would otherwise go on until the deadline, and be cut there."""
    monkeypatch.setattr("serve.moves.handover.SHORT_S", 0.0)
    lends = Lends(growth=1)
    assert pull(Thread(), lends)[0].how == "kv"
    assert lends.stages == [(0, False), (20, False), (21, True)]


def test_a_source_that_has_less_time_than_it_had_is_taken_over_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.moves.handover.SHORT_S", 0.0)
    lends = Lends(growth=2, stage_s=0.02)

    class Hastened(Thread):
        def kv_in(self, ticket: str, blocks: KvBlocks) -> int:
            if len(lends.stages) == 2:
                lends.left_s = 1.03  # the machine goes sooner than was said: a second above the margin
            return super().kv_in(ticket, blocks)

    assert pull(Hastened(), lends, left_s=math.inf)[0].how == "kv"
    assert [last for _, last in lends.stages] == [False, False, True]


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
    assert (pulled.how, pulled.reason) == ("recompute", "no room: of its KV 5 blocks came, and no more")
    pulled, _ = pull(Thread(room=20), lends := Lends())
    assert (pulled.how, lends.stages) == ("recompute", [(0, False), (20, True)])


def test_the_link_is_learnt_from_what_it_carried() -> None:
    before, puller = pull(Thread(), Lends(stage_s=0.1))
    assert before.how == "kv"
    assert 20 * BLOCK_BYTES / 10 < puller.link.per_s < 21 * BLOCK_BYTES / 0.1


def test_pulls_at_once_learn_the_links_rate_not_their_shares() -> None:
    """Four at once, each of which gets its 20 MiB in 0.1 s: a link of 800 MiB/s."""

    async def scenario() -> Puller:
        puller = Puller(Thread(room=9999), block_size=16, block_bytes=BLOCK_BYTES, tokens_per_s=lambda: 100.0, make_ready=nothing)  # type: ignore[arg-type]
        await asyncio.gather(*(puller.pull(Lends(growth=0, stage_s=0.1), str(i), 60.0) for i in range(4)))
        return puller

    share = 20 * BLOCK_BYTES / 0.1
    assert 2 * share < asyncio.run(scenario()).link.per_s < 4.2 * share


def test_a_lost_source_is_a_crash_a_stream_that_has_left_is_none_and_ones_own_failure_is_raised() -> None:
    assert pull(Thread(), Lends(fails=Gone("r")))[0].reason == "it left its source before it was taken over"
    pulled, _ = pull(Thread(), Lends(fails=RuntimeError("died\nwith a trace")))
    assert (pulled.how, pulled.reason) == ("crash", "the source was lost in stage 1: RuntimeError: died")
    pulled, _ = pull(Thread(), Lends(fails=Gone("r"), fails_in=2))
    assert (pulled.how, pulled.num_bytes) == ("recompute", 20 * BLOCK_BYTES)
    assert pulled.reason == "it left its source before it was taken over to its end: 21.0 MB had come"
    thread = Thread()
    thread.failure = ValueError("out of memory")
    with pytest.raises(RuntimeError, match="the engine failed"):
        pull(thread, Lends())


def test_a_source_that_falls_silent_is_given_up_but_a_slow_link_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.moves.pull.QUIET_S", 0.15)
    began = time.monotonic()
    pulled, _ = pull(Thread(), Lends(stage_s=60.0))
    assert pulled.how == "crash"
    assert time.monotonic() - began < 10.0
    pulled, _ = pull(Thread(), Lends(stage_s=0.3, num_slices=10))  # longer than the silence that is borne, but never silent for so long
    assert pulled.how == "kv"


def test_a_pull_that_is_cancelled_keeps_nothing() -> None:
    async def scenario() -> Thread:
        thread = Thread()
        puller = Puller(thread, block_size=16, block_bytes=BLOCK_BYTES, tokens_per_s=lambda: 100.0, make_ready=nothing)  # type: ignore[arg-type]
        task = asyncio.create_task(puller.pull(Lends(stage_s=2.0, num_slices=20), "t", 600.0))
        while not thread.taken:
            await asyncio.sleep(0.01)
        assert thread.kept == {"t"}
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return thread

    assert asyncio.run(scenario()).kept == set()


def test_a_ticket_in_use_is_used_until_it_is_released() -> None:
    thread = Thread()
    puller = Puller(thread, block_size=16, block_bytes=BLOCK_BYTES, tokens_per_s=lambda: 100.0, make_ready=nothing)  # type: ignore[arg-type]
    puller.keep("t")
    assert thread.kept == {"t"}
    puller.release("t")
    assert thread.kept == set()
