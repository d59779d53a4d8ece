"""The engine in its thread: what is delivered, answered, given up, handed over, given back and cancelled."""

import queue
from typing import Any

import numpy as np
import pytest

from serve.engine.kv_blocks import KvBlocks
from serve.engine.request import Emission, Request
from serve.engine.snapshot import Snapshot
from serve.engine_thread import EngineThread, Gone
from serve.migrate import Moved, Refused, Standing

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

    def kv_chain(self, request_id: str) -> tuple[bytes, ...]:
        return tuple(bytes([token]) for token in self.live[request_id])

    def kv_out(self, request_id: str, first: int = 0, last: int | None = None) -> KvBlocks:
        hashes = self.kv_chain(request_id)[first:last]
        return KvBlocks("counted", 1, b"", hashes, np.zeros((len(hashes), 1), np.uint8))

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


def begun(bench: Bench) -> None:
    """Stream "a" has told its first token."""
    bench.thread.add(Request(id="a", prompt=(1,)))
    bench.engine.steps.put(True)
    assert bench.next() == [("a", Emission(request_id="a", tokens=(0,), text="x"))]


def told(bench: Bench) -> list[int]:
    """Tokens that "a" has told since."""
    found = []
    while not bench.news.empty():
        found += [token for _, what in bench.news.get() if isinstance(what, Emission) for token in what.tokens]
    return found


def test_one_that_leaves_goes_on_and_admits_nothing() -> None:
    bench = Bench()
    begun(bench)
    bench.thread.leave()
    bench.thread.add(Request(id="b", prompt=(1,)))
    bench.engine.steps.put(True)  # the step that may be under way
    bench.engine.steps.put(True)
    news = bench.next() + bench.next()
    assert ("b", Moved(None)) in news
    assert [what.tokens for name, what in news if name == "a"] == [(1,), (2,)]


def test_live_requests_are_handed_over_with_every_token_they_emitted() -> None:
    bench = Bench()
    begun(bench)
    bench.thread.hand_over()
    bench.engine.steps.put(True)  # the step that may be under way
    found = [bench.next()]
    while not isinstance(found[-1][-1][1], Moved):
        found.append(bench.next())
    emitted = [token for news in found for _, what in news if isinstance(what, Emission) for token in what.tokens]
    assert found[-1][-1][1].snapshot.emitted == (0, *emitted)
    bench.thread.add(Request(id="b", prompt=(1,)))
    assert bench.next() == [("b", Moved(None))]
    assert not bench.engine.has_work


def test_a_stream_is_looked_at_and_given_up_between_steps() -> None:
    bench = Bench()
    begun(bench)
    looked, given_up = bench.thread.look("a"), bench.thread.give_up("a", 1)
    bench.engine.steps.put(True)
    standing, (last, blocks) = looked.result(PATIENCE_S), given_up.result(PATIENCE_S)
    emitted = (0, *told(bench))
    assert standing == Standing(tuple(bytes([token]) for token in emitted), 1 + len(emitted), 1)
    assert last.snapshot.emitted == emitted
    assert blocks.hashes == standing.hashes[1:]
    assert not bench.engine.live
    for future in (bench.thread.look("a"), bench.thread.give_up("a", 0)):
        with pytest.raises(Gone):
            future.result(PATIENCE_S)


def test_what_an_answer_raises_is_the_askers() -> None:
    bench = Bench()
    with pytest.raises(ZeroDivisionError):
        bench.thread.ask(lambda engine: 1 // 0).result(PATIENCE_S)
    assert bench.thread.ask(lambda engine: engine.has_work).result(PATIENCE_S) is False


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
    with pytest.raises(RuntimeError, match="the engine failed: out of memory"):
        bench.thread.look("a").result(PATIENCE_S)


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
