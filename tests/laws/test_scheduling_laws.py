"""The scheduler's laws, with a model whose tokens betray every wrong block: nothing is lost, nothing is mixed up, nobody starves.

Whatever the policy, the way of preempting, the window, the pool and the order of events: each request gets the tokens it gets alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from serve.engine.batch import Batch
from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.fairness import INPUT_WEIGHT, OUTPUT_WEIGHT
from serve.engine.policy import ARRIVALS_PER_TOKEN, INPUT_COST
from serve.engine.request import Request, Sampling
from serve.engine.snapshot import Snapshot
from serve.engine.toy import ToyRunner, ToyTokenizer

SIZE, LONGEST = 4, 48
BLOCK_BYTES = SIZE * 16
Outcome = tuple[tuple[int, ...], str, str | None]


def make_engine(num_blocks: int = 200, window: int | None = None, **fields: Any) -> Engine:
    runner = ToyRunner(vocab_size=27, num_blocks=num_blocks, block_size=SIZE, window=window)
    config = EngineConfig(block_size=SIZE, num_blocks=num_blocks, **fields)
    return Engine(runner, ToyTokenizer(), config, "toy", LONGEST)  # type: ignore[arg-type]


def alone(request: Request, window: int | None) -> Outcome:
    """What the request gets by itself, without anything clever."""
    engine = make_engine(window=window, draft="off", prefix_cache=False, max_sequences=1)
    engine.add(request)
    return drain(engine, {request.id: ((), "", None)})[request.id]


def collect(engine: Engine, outcomes: dict[str, Outcome]) -> None:
    for emission in engine.step():
        tokens, text, reason = outcomes[emission.request_id]
        assert reason is None, "nothing follows a finish"
        outcomes[emission.request_id] = (tokens + emission.tokens, text + emission.text, emission.finish_reason)


def drain(engine: Engine, outcomes: dict[str, Outcome]) -> dict[str, Outcome]:
    for _ in range(20_000):
        if not engine.has_work:
            break
        collect(engine, outcomes)
        engine.check()
    assert not engine.has_work, "it never comes to an end"
    assert not engine.runner.host, "copies are left in host memory"  # type: ignore[attr-defined]
    return outcomes


class Seer:
    """A drafter that knows the answer, and errs at every seventh token. (A learning one would follow the clock.)"""

    def __init__(self, request: Request, window: int | None) -> None:
        self._text, self._seen = request.prompt + alone(replace(request, emitted=()), window)[0], 0

    def observe(self, tokens: list[int]) -> None:
        self._seen += len(tokens)

    def propose(self, verify_cost: float) -> list[int]:
        return [token if at % 7 else token % 26 + 1 for at, token in enumerate(self._text)][self._seen : self._seen + 5]

    def judge(self, num_accepted: int) -> None:
        pass

    def recycle(self, tokens: Sequence[int], successors: Sequence[int]) -> None:
        pass


OPENINGS = ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4), (5, 5, 5, 5, 5, 5), ())


@st.composite
def requests(draw: st.DrawFn) -> Request:
    prompt = draw(st.sampled_from(OPENINGS)) + tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=9)))
    sampling = Sampling(
        max_tokens=draw(st.integers(1, 20)),
        temperature=draw(st.sampled_from([0.0, 0.8])),
        seed=draw(st.integers(0, 99)),
        stop=draw(st.sampled_from([(), ("ab", "q")])),
        ignore_eos=draw(st.booleans()),
    )
    owner = {"tenant": draw(st.sampled_from(["", "t"])), "client": draw(st.sampled_from(["a", "b", ""]))}
    return Request(id="", prompt=prompt, sampling=sampling, priority=draw(st.sampled_from([0, 0, 0, 1, -1])), **owner)


class Life(RuleBasedStateMachine):
    """Requests come, go on, are cancelled, move out and in again; steps fail; blocks are few."""

    @initialize(
        window=st.sampled_from([None, None, 7]),
        num_blocks=st.integers(11, 18),
        policy=st.sampled_from(["fcfs", "fair", "shortest"]),
        swap=st.sampled_from([0, 5, 1000]),  # blocks
        draft=st.booleans(),
        prefix_cache=st.booleans(),
        max_sequences=st.integers(1, 6),
        max_tokens=st.integers(6, 40),
    )
    def load(self, window: int | None, swap: int, draft: bool, max_tokens: int, **fields: Any) -> None:
        self.window = window
        self.engine = make_engine(
            window=window,
            preempt="swap" if swap else "recompute",
            swap_bytes=swap * BLOCK_BYTES,
            max_tokens_per_step=max_tokens,
            draft="off",
            **fields,
        )
        if draft:
            self.engine._drafter = lambda request: Seer(request, self.window)  # type: ignore[method-assign]
            self.engine._verify_cost = lambda: 0.0  # type: ignore[method-assign]
        self.requests: dict[str, Request] = {}
        self.outcomes: dict[str, Outcome] = {}

    @rule(request=requests(), copies=st.sampled_from([1, 1, 3]))
    def add(self, request: Request, copies: int) -> None:
        for choice in range(copies):
            named = replace(request, id=f"r{len(self.requests)}", choice=choice)
            self.requests[named.id] = named
            self.outcomes[named.id] = ((), "", None)
            self.engine.add(named)

    @rule(times=st.integers(1, 6))
    def step(self, times: int) -> None:
        for _ in range(times):
            collect(self.engine, self.outcomes)

    @rule(moment=st.sampled_from(["before", "between", "after"]))
    def fail(self, moment: str) -> None:
        """A step whose pass raises: before it began, between the copies and the computing, or when all was computed."""
        runner, began, raised = self.engine.runner, self.engine.stats()["steps"], False
        run = runner.run

        def failing(batch: Batch) -> Tensor:
            if moment == "between":
                run(Batch([], batch.copies_out, batch.copies_in))
            elif moment == "after":
                run(batch)
            raise MemoryError(moment)

        runner.run = failing  # type: ignore[method-assign]
        try:
            collect(self.engine, self.outcomes)
        except MemoryError:
            raised = True
            assert not self.engine.scheduler.running
        finally:
            runner.run = run  # type: ignore[method-assign]
        assert raised or self.engine.stats()["steps"] == began, "it was computed all the same"

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        assert self.engine.cancel(data.draw(st.sampled_from(self.live())))
        collect(self.engine, self.outcomes)

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        """Snapshot, cancel, add again: the new life goes on where the old one stood."""
        name = data.draw(st.sampled_from(self.live()))
        moved = Snapshot.from_json(self.engine.snapshot(name).to_json()).request()
        self.engine.cancel(name)
        before = self.outcomes[name]
        collect(self.engine, self.outcomes)  # the cancellation is told, and its held-back text, which nobody shows
        self.outcomes[name] = before
        self.engine.add(moved)

    def live(self) -> list[str]:
        return [name for name, (_, _, reason) in getattr(self, "outcomes", {}).items() if reason is None]

    @invariant()
    def conserved(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        drain(self.engine, self.outcomes)
        assert self.engine.stats()["held_blocks"] == 0
        for name, outcome in self.outcomes.items():
            expected = alone(self.requests[name], self.window)
            if outcome[2] == "cancelled":
                assert outcome[0] == expected[0][: len(outcome[0])]
            else:
                assert outcome == expected, name


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=120, stateful_step_count=25, deadline=None)


# ---- fairness and starvation -------------------------------------------------------------------------------------------

CLIENTS = "abc"


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), num_blocks=st.integers(14, 40), max_sequences=st.integers(1, 4))
def test_clients_with_work_waiting_get_equal_shares(seed: int, num_blocks: int, max_sequences: int) -> None:
    """VTC's theorem 4.4: over any stretch in which two clients have requests waiting, what they are served differs by at most 2U."""
    rng = random.Random(seed)
    engine = make_engine(num_blocks, policy="fair", max_sequences=max_sequences, draft="off", prefix_cache=False)
    sizes = {client: (rng.randint(1, 20), rng.randint(1, 20)) for client in CLIENTS}
    batch_tokens = min(num_blocks * SIZE, max_sequences * LONGEST)
    bound = 2 * max(INPUT_WEIGHT * 20, OUTPUT_WEIGHT * batch_tokens)
    served, waiting = dict.fromkeys(CLIENTS, 0.0), dict.fromkeys(CLIENTS, 0)
    gaps = dict.fromkeys(("ab", "ac", "bc"), (0.0, 0.0))  # least and greatest difference while both had work waiting
    for number in range(400):
        for client in CLIENTS:
            if waiting[client] < 2 and rng.random() < 0.9:
                num_inputs, num_outputs = sizes[client]
                prompt = tuple(rng.randint(1, 26) for _ in range(num_inputs))
                sampling = Sampling(max_tokens=num_outputs, temperature=0, ignore_eos=True)
                engine.add(Request(id=f"{client}{number}", prompt=prompt, sampling=sampling, client=client))
        before = {s.request.id for s in engine.scheduler.waiting if s.started is None}
        for emission in engine.step():
            served[emission.request_id[0]] += OUTPUT_WEIGHT * len(emission.tokens)
        after = {s.request.id for s in engine.scheduler.waiting if s.started is None}
        for name in before - after:
            served[name[0]] += INPUT_WEIGHT * sizes[name[0]][0]
        waiting = {client: sum(name[0] == client for name in after) for client in CLIENTS}
        for pair in gaps:
            gap = served[pair[0]] - served[pair[1]]
            least, greatest = gaps[pair]
            gaps[pair] = (min(least, gap), max(greatest, gap)) if all(waiting[client] for client in pair) else (gap, gap)
            assert gaps[pair][1] - gaps[pair][0] <= bound
    assert min(served.values()) > 0


@pytest.mark.parametrize("policy", ["fcfs", "fair", "shortest"])
def test_a_long_request_among_endless_short_ones_is_served(policy: str) -> None:
    """The worst company for each policy: short answers without end, from clients that were never served before."""
    engine = make_engine(16, policy=policy, max_sequences=2, draft="off")
    short, long = (Sampling(max_tokens=n, temperature=0, ignore_eos=True) for n in (2, 40))
    lessons = [Request(id=f"lesson{i}", prompt=(1, 2), sampling=(short, long)[i % 2], client=("", "long")[i % 2]) for i in range(60)]
    for request in lessons:
        engine.add(request)
    drain(engine, {request.id: ((), "", None) for request in lessons})
    engine.add(Request(id="long", prompt=(5, 6, 7), sampling=long, client="long"))
    num_finished = 0
    for number in range(2000):
        while len(engine.scheduler.waiting) < 4:
            engine.add(Request(id=f"s{number}-{len(engine.scheduler.waiting)}", prompt=(1, 2), sampling=short, client=f"c{number}"))
        news = engine.step()
        num_finished += sum(e.finish_reason is not None for e in news)
        if any(e.request_id == "long" and e.finish_reason for e in news):
            break
    assert any(e.request_id == "long" and e.finish_reason == "length" for e in news)
    overtaking = ARRIVALS_PER_TOKEN * (40 + INPUT_COST * 3)
    assert num_finished <= overtaking + 40 + 2, "so many go ahead of it at most; beside it runs one at a time, for a step or more"


def test_the_higher_priority_goes_first_and_takes_the_place_of_the_lower() -> None:
    engine = make_engine(16, max_sequences=2, draft="off", preempt="swap", swap_bytes=100 * BLOCK_BYTES)
    sampling = Sampling(max_tokens=12, temperature=0, ignore_eos=True)
    low = [Request(id=f"low{i}", prompt=(i + 1,) * 9, sampling=sampling) for i in range(3)]
    high = [Request(id=f"high{i}", prompt=(i + 5,) * 9, sampling=sampling, priority=1) for i in range(2)]
    outcomes: dict[str, Outcome] = {r.id: ((), "", None) for r in low + high}
    for request in low:
        engine.add(request)
    for _ in range(4):
        collect(engine, outcomes)
    for request in high:
        engine.add(request)
    collect(engine, outcomes)
    assert {s.request.id for s in engine.scheduler.running} == {"high0", "high1"}
    assert [s.request.id for s in engine.scheduler.waiting] == ["low0", "low1", "low2"]
    drain(engine, outcomes)
    assert engine.stats()["swapped"] == 2
    assert engine.stats()["tokens_computed"] == 5 * (9 + 12 - 1), "swapped blocks are not computed again"
    for request in low + high:
        assert outcomes[request.id] == alone(request, None)
