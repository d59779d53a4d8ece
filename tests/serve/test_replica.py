"""The engine in its thread: what is delivered, handed over, given back and cancelled; then streams that move between two engines."""

import asyncio
import queue
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.request import Emission, Request, Sampling
from serve.engine.snapshot import Snapshot
from serve.migrate import Done, Fresh, Moved, Record, Refused, Tokens
from serve.relay import Journal, follow
from serve.replica import EngineThread, Outbox
from serve.router import Board, Place

PATIENCE_S = 30.0


class Counting:
    """An engine that emits 0, 1, 2, … for every request, one token a step, only when it is let."""

    def __init__(self) -> None:
        self.live: dict[str, list[int]] = {}
        self.steps: queue.Queue[bool] = queue.Queue()

    @property
    def has_work(self) -> bool:
        return bool(self.live)

    def add(self, request: Request) -> None:
        if request.prompt == (0,):
            raise ValueError("prompt: cannot be run")
        if request.prompt == (9,):
            raise IndexError("a fault of ours")
        self.live[request.id] = list(request.emitted)

    def cancel(self, request_id: str) -> bool:
        return self.live.pop(request_id, None) is not None

    def snapshot(self, request_id: str) -> Snapshot:
        return Snapshot(origin=Request(id=request_id, prompt=(1,)), emitted=tuple(self.live[request_id]))

    def step(self) -> list[Emission]:
        if not self.steps.get(timeout=PATIENCE_S):
            raise RuntimeError("out of memory")
        for tokens in self.live.values():
            tokens.append(len(tokens))
        return [Emission(request_id=name, tokens=(tokens[-1],), text="x") for name, tokens in self.live.items()]


class Bench:
    """A thread around an engine, and everything it said."""

    def __init__(self) -> None:
        self.engine, self.news = Counting(), queue.Queue()
        self.thread = EngineThread(self.engine, self.news.put, self.news.put)

    def next(self) -> Any:
        return self.news.get(timeout=PATIENCE_S)


def test_live_requests_are_handed_over_with_every_token_they_emitted() -> None:
    bench = Bench()
    bench.thread.add(Request(id="a", prompt=(1,)))
    bench.engine.steps.put(True)
    assert bench.next() == [("a", Emission(request_id="a", tokens=(0,), text="x"))]
    bench.thread.leave()
    bench.engine.steps.put(True)  # the step that may be under way
    found = [bench.next()]
    while not isinstance(found[-1][-1][1], Moved):
        found.append(bench.next())
    emitted = [token for news in found for _, what in news if isinstance(what, Emission) for token in what.tokens]
    assert found[-1][-1][1].snapshot.emitted == (0, *emitted)
    bench.thread.add(Request(id="b", prompt=(1,)))
    assert bench.next() == [("b", Moved(None))]
    assert not bench.engine.has_work


def test_a_request_that_cannot_run_is_refused_and_a_cancelled_one_forgotten() -> None:
    bench = Bench()
    bench.thread.add(Request(id="bad", prompt=(0,)))
    assert bench.next() == [("bad", Refused("prompt: cannot be run"))]
    bench.thread.add(Request(id="a", prompt=(1,)))
    bench.engine.steps.put(True)
    bench.next()
    bench.thread.cancel("a")
    bench.engine.steps.put(True)
    bench.thread.add(Request(id="b", prompt=(0,)))
    while bench.next()[-1][0] != "b":
        pass
    assert not bench.engine.live


def test_a_failed_step_fails_the_replica() -> None:
    bench = Bench()
    bench.thread.add(Request(id="a", prompt=(1,)))
    bench.engine.steps.put(False)
    assert str(bench.next()) == "out of memory"
    assert isinstance(bench.thread.failure, RuntimeError)


def test_a_request_that_breaks_its_own_admission_breaks_no_other() -> None:
    bench = Bench()
    bench.thread.add(Request(id="a", prompt=(1,)))
    bench.thread.add(Request(id="b", prompt=(9,)))
    bench.engine.steps.put(True)
    bench.engine.steps.put(True)
    news = [item for _ in range(2) for item in bench.next()]
    assert ("b", Refused("the request cannot be run (IndexError)")) in news
    assert next(what.tokens for name, what in news if name == "a") == (0,)
    assert bench.thread.failure is None


def test_an_outbox_merges_what_waits_and_counts_on_from_where_the_request_stood() -> None:
    async def scenario() -> list[Any]:
        box = Outbox(3, 5)
        box.put(Emission(request_id="a", tokens=(7,), text="a"))
        box.put(Emission(request_id="a", tokens=(8, 9), text="bc"))
        frames = [await box.frame(1.0), await box.frame(0.01)]
        box.put(Emission(request_id="a", tokens=(1,), text="d", finish_reason="stop", num_drafted=4, num_accepted=3))
        frames.append(await box.frame(1.0))
        return frames

    first, beat, last = asyncio.run(scenario())
    assert first == Tokens(3, (7, 8, 9), 5, "abc")
    assert beat == Tokens(6, (), 8, "")
    assert last == Done(Tokens(6, (1,), 8, "d"), "stop", 0, 4, 3)


def test_an_outbox_sends_what_it_has_before_it_says_that_the_stream_moved() -> None:
    async def scenario() -> list[Any]:
        box = Outbox(0, 0)
        box.put(Emission(request_id="a", tokens=(7,), text="a"))
        box.put(Moved(None))
        return [await box.frame(1.0), await box.frame(1.0)]

    assert asyncio.run(scenario()) == [Tokens(0, (7,), 0, "a"), Moved(None)]


class LocalReplica:
    """A replica without Ray: a real engine, its thread, and the same outboxes."""

    def __init__(self, name: str, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self.name, self.loop, self.boxes = name, loop, {}
        self.thread = EngineThread(engine, self.deliver, lambda error: None)

    def deliver(self, news: list[Any]) -> None:
        self.loop.call_soon_threadsafe(lambda: [self.boxes[name].put(what) for name, what in news if name in self.boxes])

    def places(self, streams: Any) -> list[Place]:
        return [Place(self.name, self.name, f"node-{self.name}", streams.get(self.name, 0), 99)]

    async def frames(self, request: Request, num_chars: int, leave_after: int) -> AsyncIterator[Any]:
        box = self.boxes[request.id] = Outbox(len(request.emitted), num_chars)
        self.thread.add(request)
        over, sent = False, 0
        while not over:
            frame = await box.frame(PATIENCE_S)
            over = isinstance(frame, Done | Moved | Refused)
            sent += len(frame.tokens) if isinstance(frame, Tokens) else 0
            yield frame
            if sent >= leave_after:
                self.thread.leave()


SAMPLINGS = {
    "greedy": Sampling(max_tokens=60, temperature=0.0, seed=1, ignore_eos=True),
    "seeded": Sampling(max_tokens=60, temperature=1.2, seed=2, ignore_eos=True, logprobs=2),
    "stop": Sampling(max_tokens=60, temperature=1.0, seed=3, ignore_eos=True, stop=("zq", "ab\n\n", "\n\n\n")),
}


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_a_stream_that_moves_between_engines_is_the_undisturbed_one(kind: str, tiny_model_dir: Path) -> None:
    engines = [Engine.load(tiny_model_dir, EngineConfig(dtype="float64", num_threads=1)) for _ in range(3)]
    prompt = tuple(engines[0].tokenizer.encode("def add(left"))
    want = engines[0].generate([list(prompt)], SAMPLINGS[kind])[0]

    async def scenario() -> tuple[list[Fresh], Record, Journal]:
        board, loop, heard, journal = Board(), asyncio.get_running_loop(), [], Journal()
        replicas = {name: LocalReplica(name, engine, loop) for name, engine in zip("abc", engines, strict=True)}
        for name, replica in replicas.items():
            board.register(name, replica)
        gone: set[str] = set()

        def open_source(place: Place, request: Request, num_chars: int) -> Any:
            gone.add(place.node_id)
            board.draining = lambda: gone
            source = replicas[place.replica_id].frames(request, num_chars, 9 if len(gone) < 3 else 999)

            class Source:
                def __aiter__(self) -> Any:
                    return source

                def cancel(self) -> None: ...

            return Source()

        record = Record(Request(id="r", prompt=prompt, sampling=SAMPLINGS[kind]))
        await follow(record, board, open_source, heard.append, journal=journal, max_wait_s=5)
        return heard, record, journal

    heard, record, journal = asyncio.run(scenario())
    assert tuple(token for fresh in heard for token in fresh.tokens) == want.tokens
    assert "".join(fresh.text for fresh in heard) == want.text
    assert record.finish.finish_reason == want.finish_reason
    assert [stay.end for stay in journal.stays] == ["moved", "moved", "done"]
    if want.logprobs is not None:
        got = [entry.logprob for fresh in heard for entry in fresh.logprobs]
        assert got == pytest.approx([entry.logprob for entry in want.logprobs], abs=1e-9)
