"""The laws of moving with KV: a request's tokens are those of the undisturbed run, and what was computed is not computed again.

Exactly in float64, to the bit on the native kernels, with int8 KV, adapters, drafts, choices that share a prompt; whether requests run,
wait or are preempted; in stages, several times, where there is room for all blocks, for some or for none.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.native.library import refusal
from serve.engine.request import Emission, Request, Sampling
from tests.laws.test_engine_laws import Outcome, collect, make_requests, run
from tests.laws.test_scheduling_laws import Life, Seer, drain, make_engine
from tests.laws.test_scheduling_laws import collect as collect_toy
from tests.moving import carry, taken

needs_native = pytest.mark.skipif(refusal() is not None, reason=f"native kernels: {refusal()}")


class Journeys(Life):
    """Life, and another engine: requests go there with their KV, or some of it, and come back; tickets may be forgotten."""

    there: Engine | None = None

    def live(self) -> list[str]:
        """Here; elsewhere they are nobody's business but this class's."""
        return [name for name in super().live() if name not in self.abroad()]

    def abroad(self) -> list[str]:
        return [] if self.there is None else [*self.there._live]

    def _settle(self, num_blocks: int, prefix_cache: bool, max_sequences: int) -> Engine:
        if self.there is None:
            fields = {"prefix_cache": prefix_cache, "max_sequences": max_sequences, "draft": "off"}
            self.there = make_engine(num_blocks, self.window, **fields)
            self.there._drafter = lambda request: Seer(request, self.window)  # type: ignore[method-assign]
            self.there._verify_cost = lambda: 0.0  # type: ignore[method-assign]
        return self.there

    @precondition(lambda self: self.live())
    @rule(
        data=st.data(),
        num_blocks=st.integers(11, 18),
        prefix_cache=st.booleans(),
        max_sequences=st.integers(1, 4),
        cuts=st.lists(st.integers(1, 8), max_size=2),
        num_steps=st.integers(0, 4),
        forget=st.booleans(),
    )
    def depart(
        self,
        data: st.DataObject,
        num_blocks: int,
        prefix_cache: bool,
        max_sequences: int,
        cuts: list[int],
        num_steps: int,
        forget: bool,
    ) -> None:
        there = self._settle(num_blocks, prefix_cache, max_sequences)
        self._travel(self.engine, there, data.draw(st.sampled_from(self.live())), cuts, num_steps, forget)

    @precondition(lambda self: self.abroad())
    @rule(data=st.data(), cuts=st.lists(st.integers(1, 8), max_size=2), num_steps=st.integers(0, 4), forget=st.booleans())
    def come_home(self, data: st.DataObject, cuts: list[int], num_steps: int, forget: bool) -> None:
        assert self.there is not None
        self._travel(self.there, self.engine, data.draw(st.sampled_from(self.abroad())), cuts, num_steps, forget)

    def _travel(self, source: Engine, destination: Engine, name: str, cuts: list[int], num_steps: int, forget: bool) -> None:
        """In two stages, with steps on both sides between them; the request may come to its end meanwhile."""
        ticket = f"{name}#{len(self.requests)}"
        carry(source, destination, name, ticket, cuts)
        for _ in range(num_steps):
            collect_toy(source, self.outcomes)
            collect_toy(destination, self.outcomes)
        carry(source, destination, name, ticket)
        destination.check()
        if self.outcomes[name][2] is None:
            before = self.outcomes[name]
            request = taken(source, name)
            collect_toy(source, self.outcomes)  # tells of the cancellation, which nobody hears
            self.outcomes[name] = before
            destination.add(request)
        if not forget:
            destination.kv_release(ticket)

    @rule(times=st.integers(1, 6))
    def step_there(self, times: int) -> None:
        for _ in range(times if self.there is not None else 0):
            collect_toy(self.there, self.outcomes)  # type: ignore[arg-type]
            self.there.check()  # type: ignore[union-attr]

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            for engine in [self.engine] + ([self.there] if self.there is not None else []):
                drain(engine, self.outcomes)  # tickets that nobody released keep nobody from his end
                for ticket in list(engine.scheduler.pins._blocks_of):
                    engine.kv_release(ticket)
                assert engine.stats()["held_blocks"] == 0
        super().teardown()


TestJourneys = Journeys.TestCase
TestJourneys.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)


# ---- real models -------------------------------------------------------------------------------------------------------

ENGINES: dict[str, dict[str, object]] = {
    "plain": {"draft": "off", "prefix_cache": False, "max_sequences": 1},
    "drafted": {"draft": "anpd", "draft_max": 5},
    "few blocks": {"num_blocks": 22, "max_sequences": 6},
    "few seats": {"max_tokens_per_step": 9, "max_sequences": 2},
    "no prefixes kept": {"prefix_cache": False},
}
ROUTE = ("drafted", "few blocks", "no prefixes kept", "few seats")
ADAPTER = "polite"


@pytest.fixture(scope="module", params=["auto", "int8"])
def engines(request: pytest.FixtureRequest, tiny_model_dir: Path, tiny_adapter_dir: Path) -> dict[str, Engine]:
    common: dict[str, Any] = {"dtype": "float64", "block_size": 4, "max_sequences": 5, "num_blocks": 400, "kv_dtype": request.param}
    common["adapters"] = (f"{ADAPTER}={tiny_adapter_dir}",)
    return {name: Engine.load(tiny_model_dir, EngineConfig(**{**common, **fields})) for name, fields in ENGINES.items()}


def make_travellers(seed: int, temperature: float) -> list[Request]:
    """Two choices of one prompt, one request with an adapter, and others."""
    first, *others = make_requests(seed, temperature)
    return [first, replace(first, id="again", choice=7), replace(first, id="adapted", adapter=ADAPTER), *others[:3]]


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000), stops=st.lists(st.integers(0, 9), min_size=1, max_size=3), temperature=st.sampled_from([0.0, 0.8]))
def test_a_request_that_moves_with_its_kv_gets_the_same_tokens(
    engines: dict[str, Engine], seed: int, stops: list[int], temperature: float
) -> None:
    requests = make_travellers(seed, temperature)
    expected = run(engines["plain"], requests)
    outcomes: dict[str, Outcome] = {request.id: ((), "", None) for request in requests}
    route = [engines[name] for name in ROUTE[: len(stops) + 1]]
    carried = requests
    for engine, destination, num_steps in zip(route, route[1:], stops, strict=False):
        for request in carried:
            engine.add(request)
        for _ in range(num_steps):
            collect(engine, outcomes)
        for name in engine._live:  # a first stage; some waits, some is preempted, some comes to its end before it leaves
            carry(engine, destination, name, name)
        collect(engine, outcomes)
        carried = []
        for name in [name for name, (_, _, reason) in outcomes.items() if reason is None]:
            carry(engine, destination, name, name, cuts=(2,))
            carried.append(taken(engine, name))
        engine.step()  # tells of the cancellations: the other engine takes over
        engine.check()
    for request in carried:
        route[-1].add(request)
    while route[-1].has_work:
        collect(route[-1], outcomes)
    assert outcomes == expected
    for engine in route:
        for request in requests:
            engine.kv_release(request.id)
        engine.check()
        assert engine.stats()["held_blocks"] == 0


def until(engine: Engine, name: str, num_tokens: int) -> list[Emission]:
    """Emissions of a request, step after step, until it has told so many tokens or ended."""
    found: list[Emission] = []
    while engine.has_work and sum(len(e.tokens) for e in found) < num_tokens:
        found += [e for e in engine.step() if e.request_id == name]
    return found


KINDS = [
    pytest.param({"dtype": "float64"}, id="float64"),
    pytest.param({"dtype": "float64", "kv_dtype": "int8"}, id="float64, int8 KV"),
    pytest.param({"dtype": "bfloat16", "kernels": "native"}, id="native", marks=needs_native),
    pytest.param({"dtype": "bfloat16", "kernels": "native", "kv_dtype": "int8"}, id="native, int8 KV", marks=needs_native),
]


@pytest.mark.parametrize("adapter", ["", ADAPTER])
@pytest.mark.parametrize("fields", KINDS)
def test_to_the_bit_and_nothing_twice(fields: dict[str, Any], adapter: str, tiny_model_dir: Path, tiny_adapter_dir: Path) -> None:
    """Three moves, log-probabilities and all; each destination computes the last partial block."""
    config = EngineConfig(**fields, adapters=(f"{ADAPTER}={tiny_adapter_dir}",), max_length=400)
    engines = [Engine.load(tiny_model_dir, config) for _ in range(4)]
    sampling = Sampling(temperature=0.8, seed=3, max_tokens=80, ignore_eos=True, logprobs=2)
    request = Request(id="r", prompt=tuple(range(5, 105)), sampling=sampling, adapter=adapter)
    alone = Engine.load(tiny_model_dir, config)
    alone.add(request)
    expected = until(alone, "r", 80)
    told: list[Emission] = []
    num_moved = 0
    for at, num_tokens in enumerate((7, 16, 30, 80)):
        engines[at].add(request)
        told += until(engines[at], "r", num_tokens)
        stats = engines[at].stats()
        if at:
            assert 0 < told[-1].num_computed_tokens <= config.block_size
            assert stats["prefill_tokens"] <= config.block_size
            assert stats["kv_blocks_in"] == num_moved
        if at < 3:
            num_moved = carry(engines[at], engines[at + 1], "r", "t", cuts=(3,))
            assert num_moved == len(engines[at].kv_chain("r")) >= 6
            request = taken(engines[at], "r")
    assert [t for e in told for t in e.tokens] == [t for e in expected for t in e.tokens]
    assert "".join(e.text for e in told) == "".join(e.text for e in expected)
    if "kernels" in fields:  # torch sums in another order where more than one token is computed
        assert [p for e in told for p in e.logprobs or ()] == [p for e in expected for p in e.logprobs or ()]


@needs_native
def test_kinds_do_not_mix(tiny_model_dir: Path) -> None:
    engines = [Engine.load(tiny_model_dir, EngineConfig(**fields.values[0])) for fields in KINDS]  # type: ignore[arg-type]
    for engine in engines:
        engine.add(Request(id="r", prompt=tuple(range(5, 80)), sampling=Sampling(temperature=0, max_tokens=9)))
        engine.step()
    for i, source in enumerate(engines):
        assert len(source.kv_chain("r")) == 4
        for j, destination in enumerate(engines):
            if i != j:
                assert destination.kv_in("t", source.kv_out("r")) == 0
                assert len(destination.kv_missing(source.kv_chain("r"))) == 4, "their chains have other roots, too"
