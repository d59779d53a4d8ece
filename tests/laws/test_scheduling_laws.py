"""The scheduler's laws, with a model whose tokens betray every wrong block: nothing is lost, nothing is mixed up, nobody starves.

Whatever the policy, the way of preempting, the window, the pool and the order of events: each request gets the tokens it gets alone.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.fairness import INPUT_WEIGHT, OUTPUT_WEIGHT
from serve.engine.request import Request, Sampling
from serve.engine.snapshot import Snapshot
from serve.engine.toy import ToyRunner, ToyTokenizer

SIZE, LONGEST = 4, 48
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
    """Requests come, go on, are cancelled, move out and in again; blocks are few."""

    @initialize(
        window=st.sampled_from([None, None, 7]),
        num_blocks=st.integers(11, 18),
        policy=st.sampled_from(["fcfs", "fair", "shortest"]),
        swap=st.sampled_from([0, 5, 1000]),
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
            swap_bytes=swap,
            max_tokens_per_step=max_tokens,
            draft="off",
            **fields,
        )
        if draft:
            self.engine._drafter = lambda request: Seer(request, self.window)  # type: ignore[method-assign]
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
