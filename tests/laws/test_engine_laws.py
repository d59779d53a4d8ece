"""The engine's laws, exactly, in float64: a request's tokens are its own affair.

Alone or in company, drafted or not, prefilled whole or in chunks, preempted or not, found in the prefix cache or not, interrupted
and resumed in another engine or not: the same tokens, the same text, the same reason to stop.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.config import EngineConfig
from serve.engine.drafters import Drafters
from serve.engine.engine import Engine
from serve.engine.request import Request, Sampling
from serve.engine.snapshot import Snapshot
from tests.oracle import Oracle

Outcome = tuple[tuple[int, ...], str, str | None]

ENGINES: dict[str, dict[str, object]] = {
    "plain": {"draft": "off", "prefix_cache": False, "max_sequences": 1},
    "batched": {"draft": "off"},
    "drafted": {"draft": "anpd", "draft_max": 5},
    "chunked": {"max_tokens_per_step": 9, "max_sequences": 4},
    "tiny pool": {"num_blocks": 19, "max_sequences": 6, "preempt": "recompute"},
    "tiny pool, plain": {"num_blocks": 22, "max_sequences": 6, "preempt": "recompute", "draft": "off", "prefix_cache": False},
    "swapped, fair": {"num_blocks": 22, "max_sequences": 6, "policy": "fair", "prefix_cache": False},
    "swapped, shortest": {"num_blocks": 22, "max_sequences": 6, "policy": "shortest"},
}


@pytest.fixture(scope="module")
def engines(tiny_model_dir: Path) -> dict[str, Engine]:
    common = {"dtype": "float64", "block_size": 4, "max_sequences": 5, "num_blocks": 400}
    return {name: Engine.load(tiny_model_dir, EngineConfig(**{**common, **fields})) for name, fields in ENGINES.items()}


def make_requests(seed: int, temperature: float) -> list[Request]:
    """Six requests: repetitive prompts (so that drafts hold), a shared prefix, different lengths and rules to stop."""
    rng = random.Random(seed)
    shared = tuple(rng.randrange(4, 400) for _ in range(13))
    requests = []
    for i in range(6):
        motif = tuple(rng.randrange(4, 400) for _ in range(rng.choice([2, 3, 4])))  # some make equal blocks at different places
        prompt = (shared if i % 2 else ()) + motif * rng.randrange(1, 5)
        sampling = Sampling(
            max_tokens=rng.randrange(1, 40),
            temperature=temperature,
            top_k=rng.choice([0, 5, 40]),
            top_p=rng.choice([1.0, 0.9]),
            seed=rng.randrange(2**63),
            stop=rng.choice([(), ("e", "an")]),
            stop_token_ids=rng.choice([(), (17, 250)]),
        )
        requests.append(Request(id=f"r{i}", prompt=prompt, sampling=sampling, choice=i % 3, client="ab"[i % 2], priority=i // 4))
    return requests


def run(engine: Engine, requests: list[Request]) -> dict[str, Outcome]:
    for request in requests:
        engine.add(request)
    outcomes: dict[str, Outcome] = {request.id: ((), "", None) for request in requests}
    while engine.has_work:
        collect(engine, outcomes)
    engine.check()
    assert engine.stats()["held_blocks"] == 0
    return outcomes


def collect(engine: Engine, outcomes: dict[str, Outcome]) -> None:
    for emission in engine.step():
        tokens, text, reason = outcomes[emission.request_id]
        assert reason is None, "nothing follows a finish"
        outcomes[emission.request_id] = (tokens + emission.tokens, text + emission.text, emission.finish_reason)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_company_drafts_chunks_preemption_and_prefixes_change_nothing(engines: dict[str, Engine], temperature: float) -> None:
    before = {name: engine.stats() for name, engine in engines.items()}
    for seed in range(5):
        requests = make_requests(seed, temperature)
        expected = run(engines["plain"], requests)
        for name, engine in engines.items():
            assert run(engine, requests) == expected, name
    after = {name: engine.stats() for name, engine in engines.items()}
    gained = {name: {key: after[name][key] - before[name][key] for key in after[name]} for name in engines}
    assert gained["tiny pool"]["preemptions"] > 0, "the law was not put to the test"
    assert gained["tiny pool, plain"]["preemptions"] > 0
    assert gained["swapped, fair"]["swapped"] > 0
    assert gained["swapped, shortest"]["swapped"] > 0
    assert gained["drafted"]["drafted"] > 0
    assert gained["batched"]["cached_tokens"] > 0
    assert gained["drafted"]["steps"] < gained["plain"]["steps"]


@pytest.mark.parametrize("name", ["drafted", "tiny pool", "chunked"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafts_that_hold_change_nothing(
    engines: dict[str, Engine], name: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, rng = engines[name], random.Random(0)
    accepted = engine.stats()["accepted"]
    for seed in range(4):
        requests = make_requests(seed, temperature)
        expected = run(engines["plain"], requests)
        answers = {request.id: request.prompt + expected[request.id][0] for request in requests}
        monkeypatch.setattr(Engine, "_drafter", lambda _, request, answers=answers: Oracle(answers[request.id], rng))
        monkeypatch.setattr(Drafters, "awake", lambda *_: True)  # whether or not it pays here
        assert run(engine, requests) == expected
        monkeypatch.undo()
    assert engine.stats()["accepted"] - accepted > 60


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 1000), stops=st.lists(st.integers(0, 12), min_size=1, max_size=3), temperature=st.sampled_from([0.0, 0.8]))
def test_requests_move_between_engines_at_any_point(engines: dict[str, Engine], seed: int, stops: list[int], temperature: float) -> None:
    requests = make_requests(seed, temperature)
    expected = run(engines["plain"], requests)
    outcomes: dict[str, Outcome] = {request.id: ((), "", None) for request in requests}
    route = [engines["drafted"], engines["tiny pool"], engines["batched"], engines["chunked"]]
    carried = requests
    for engine, num_steps in zip(route, stops, strict=False):
        for request in carried:
            engine.add(request)
        for _ in range(num_steps):
            collect(engine, outcomes)
        live = [name for name, (_, _, reason) in outcomes.items() if reason is None]
        carried = [Snapshot.from_json(engine.snapshot(name).to_json()).request() for name in live]
        for name in live:
            engine.cancel(name)
        assert engine.stats()["held_blocks"] == 0
        engine.step()  # tells of the cancellations: the other engine takes over
    last = route[len(stops)]
    for request in carried:
        last.add(request)
    while last.has_work:
        collect(last, outcomes)
    assert outcomes == expected


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), moments=st.lists(st.integers(0, 30), max_size=6))
def test_cancelling_at_any_moment_frees_everything_and_disturbs_nobody(engines: dict[str, Engine], seed: int, moments: list[int]) -> None:
    requests = make_requests(seed, 0.0)
    expected = run(engines["plain"], requests)
    engine = engines["tiny pool"]
    for request in requests:
        engine.add(request)
    outcomes: dict[str, Outcome] = {request.id: ((), "", None) for request in requests}
    doomed = {f"r{i}": moment for i, moment in enumerate(moments)}
    step = 0
    while engine.has_work:
        for name, moment in doomed.items():
            if moment == step:
                engine.cancel(name)
        collect(engine, outcomes)
        engine.check()
        step += 1
    assert engine.stats()["held_blocks"] == 0
    for name, (tokens, text, reason) in outcomes.items():
        if reason == "cancelled":
            assert tokens == expected[name][0][: len(tokens)]
        else:
            assert (tokens, text, reason) == expected[name]


@pytest.mark.parametrize(("dtype", "noise"), [("float32", 1e-4), ("bfloat16", 0.15)])
def test_in_short_number_types_a_difference_is_within_the_noise(tiny_model_dir: Path, dtype: str, noise: float) -> None:
    """Kernels sum in another order at other widths: where tokens part, the two must have been as good as equal."""
    plain, drafted = (Engine.load(tiny_model_dir, EngineConfig(dtype=dtype, draft=draft)) for draft in ("off", "ngram"))
    exact = Engine.load(tiny_model_dir, EngineConfig(dtype="float64"))
    prompts = [[7 + i, 8, 9, 10 + i] * 6 for i in range(8)]
    sampling = Sampling(temperature=0, max_tokens=60, ignore_eos=True)
    alone = [plain.generate([prompt], sampling)[0].tokens for prompt in prompts]
    together = [completion.tokens for completion in drafted.generate(prompts, sampling)]
    for prompt, one, other in zip(prompts, alone, together, strict=True):
        parted = next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), None)
        if parted is not None:
            logits = exact.logits([*prompt, *one[:parted]])[-1]
            assert abs(float(logits[one[parted]] - logits[other[parted]])) < noise
