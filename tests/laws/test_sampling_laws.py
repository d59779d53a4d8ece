"""The laws of sampling: penalties, biases and grammars see the tokens so far and nothing else; drafts leave the distribution alone.

In float64, with every option and grammar in one batch: the same tokens drafted (by a drafter that errs) or not, preempted or not,
moved between engines at any point or not. On a toy vocabulary: the law of sampled tokens with drafts is the one without, by chi-square.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from serve.engine.config import EngineConfig
from serve.engine.distribution import processed
from serve.engine.drafters import Drafters
from serve.engine.engine import Engine
from serve.engine.grammar import Grammars
from serve.engine.request import Request, Sampling
from serve.engine.rules import rules
from serve.engine.sample import Question, verify
from serve.engine.snapshot import Snapshot
from tests.oracle import Oracle

Outcome = tuple[tuple[int, ...], str, str | None]

ENGINES: dict[str, dict[str, object]] = {
    "plain": {"draft": "off", "prefix_cache": False, "max_sequences": 1},
    "drafted": {},
    "tiny pool": {"num_blocks": 20, "max_sequences": 6},
    "chunked": {"max_tokens_per_step": 9, "max_sequences": 4},
}
OPTIONS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3, "top_p": 0.9},
    {"presence_penalty": 0.7, "frequency_penalty": 0.3, "min_p": 0.02},
    {"logit_bias": ((17, 4.0), (250, -5.0)), "min_tokens": 6, "stop_token_ids": (17, 30)},
    {"json_schema": '{"type": "object", "properties": {"left": {"type": "integer"}, "right": {"enum": ["add", "sub"]}}}'},
    {"regex": r"(return|index)( [a-e]{1,4}){2,5}\n", "repetition_penalty": 1.2},
    {"grammar": 'root ::= item+\nitem ::= "(" [0-9]+ ")"', "frequency_penalty": 0.5, "logprobs": 1},
]


@pytest.fixture(scope="module")
def engines(tiny_model_dir: Path) -> dict[str, Engine]:
    common = {"dtype": "float64", "block_size": 4, "max_sequences": 6, "num_blocks": 400}
    return {name: Engine.load(tiny_model_dir, EngineConfig(**{**common, **fields})) for name, fields in ENGINES.items()}


def make_requests(seed: int, temperature: float) -> list[Request]:
    rng = random.Random(seed)
    requests = []
    for i, options in enumerate(OPTIONS):
        motif = tuple(rng.randrange(4, 400) for _ in range(3))
        sampling = Sampling(max_tokens=rng.randrange(8, 40), temperature=temperature, seed=rng.randrange(2**63), **options)
        requests.append(Request(id=f"r{i}", prompt=motif * rng.randrange(1, 5), sampling=sampling, choice=i % 2))
    return requests


def collect(engine: Engine, outcomes: dict[str, Outcome]) -> None:
    for emission in engine.step():
        tokens, text, _ = outcomes[emission.request_id]
        outcomes[emission.request_id] = (tokens + emission.tokens, text + emission.text, emission.finish_reason)


def run(engine: Engine, requests: list[Request]) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {request.id: ((), "", None) for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        collect(engine, outcomes)
    assert engine.stats()["held_blocks"] == 0
    return outcomes


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_drafts_preemption_and_chunks_change_nothing(
    engines: dict[str, Engine], temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    before = {name: engine.stats() for name, engine in engines.items()}
    for seed in range(3):
        requests = make_requests(seed, temperature)
        expected = run(engines["plain"], requests)
        for name in ("r4", "r5"):
            assert expected[name][2] == "length" or re.fullmatch(r"(return|index)( [a-e]{1,4}){2,5}\n|(\([0-9]+\))+", expected[name][1])
        answers = {request.id: request.prompt + expected[request.id][0] for request in requests}
        for name in ("drafted", "tiny pool", "chunked"):
            assert run(engines[name], requests) == expected, name
            monkeypatch.setattr(Engine, "_drafter", lambda _, request, answers=answers: Oracle(answers[request.id], rng))
            monkeypatch.setattr(Drafters, "awake", lambda *_: True)  # whether or not it pays here
            assert run(engines[name], requests) == expected, name
            monkeypatch.undo()
    assert engines["tiny pool"].stats()["preemptions"] > before["tiny pool"]["preemptions"], "the law was not put to the test"
    assert engines["drafted"].stats()["accepted"] - before["drafted"]["accepted"] > 60


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), stops=st.lists(st.integers(0, 12), min_size=1, max_size=3), temperature=st.sampled_from([0.0, 0.9]))
def test_penalties_and_grammars_survive_moves(engines: dict[str, Engine], seed: int, stops: list[int], temperature: float) -> None:
    requests = make_requests(seed, temperature)
    expected = run(engines["plain"], requests)
    outcomes: dict[str, Outcome] = {request.id: ((), "", None) for request in requests}
    carried = requests
    for engine, num_steps in zip((engines["drafted"], engines["tiny pool"], engines["chunked"]), stops, strict=False):
        for request in carried:
            engine.add(request)
        for _ in range(num_steps):
            collect(engine, outcomes)
        live = [name for name, (_, _, reason) in outcomes.items() if reason is None]
        carried = [Snapshot.from_json(engine.snapshot(name).to_json()).request() for name in live]
        for name in live:
            engine.cancel(name)
        engine.step()  # tells of the cancellations: the other engine takes over
    for request in carried:
        engines["drafted"].add(request)
    while engines["drafted"].has_work:
        collect(engines["drafted"], outcomes)
    assert outcomes == expected


# ---- the distribution, on a toy vocabulary -----------------------------------------------------------------------------

NAMES = ["</s>", "a", "b", "c", "ab"]
VOCAB = len(NAMES)


class ToyTokenizer:
    """Five tokens, byte-level."""

    def vocabulary(self) -> tuple[list[str], bool]:
        return ["", *NAMES[1:]], True


GRAMMARS = Grammars(ToyTokenizer(), VOCAB)  # type: ignore[arg-type]


def toy_logits(tokens: Sequence[int]) -> torch.Tensor:
    """A model in which the next token depends on the last two."""
    key = sum((token + 1) * 7**i for i, token in enumerate(tokens[-2:]))
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


def sampled(sampling: Sampling, length: int, guess: random.Random | None) -> tuple[int, ...]:
    """Tokens after a prompt, up to the end token, by `verify`; with `guess`, under random drafts."""
    prompt, length = [1, 2], length + 2
    found = rules(sampling, prompt, [0], VOCAB, GRAMMARS.guide(sampling, [0]))
    tokens = list(prompt)
    while len(tokens) < length:
        draft = [guess.randrange(VOCAB) for _ in range(min(guess.randrange(4), length - len(tokens) - 1))] if guess else []
        rows = torch.stack([toy_logits(tokens + draft[:i]) for i in range(len(draft) + 1)])
        for token in verify([Question(sampling, 0, len(tokens), draft, found)], rows)[0].tokens:
            tokens.append(token)
            if token == 0 or (found is not None and found.append(token)):
                return tuple(tokens[2:])
    return tuple(tokens[2:])


def probability(sampling: Sampling, outcome: Sequence[int]) -> float:
    """Of sampling `outcome`, by the plain distribution, one position after the other."""
    found, total, prompt = rules(sampling, [1, 2], [0], VOCAB, GRAMMARS.guide(sampling, [0])), 1.0, [1, 2]
    for i, token in enumerate(outcome):
        logits = toy_logits([*prompt, *outcome[:i]])[None]
        if found is not None:
            found.apply(logits.numpy(), [])
        total *= float(processed(logits, [sampling])[0, token])
        if token == 0 or (found is not None and total > 0 and found.append(token)):
            return total if i == len(outcome) - 1 else 0.0
    return total


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_p": 0.8, "temperature": 1.3},
        {"repetition_penalty": 1.8, "presence_penalty": 0.5, "frequency_penalty": 0.7},
        {"regex": "(ab)*c?a+", "min_p": 0.05},
    ],
)
def test_the_distribution_under_drafts_is_the_one_without(options: dict[str, Any]) -> None:
    length, num_samples = 3, 2500
    outcomes = [o for n in range(1, length + 1) for o in product(range(VOCAB), repeat=n)]
    sampling = Sampling(max_tokens=length, **options)
    expected = {o: p for o in outcomes if (p := probability(sampling, o)) > 0 and (len(o) == length or ends(sampling, o))}
    assert sum(expected.values()) == pytest.approx(1.0)
    plain: Counter[tuple[int, ...]] = Counter()
    drafted: Counter[tuple[int, ...]] = Counter()
    for seed in range(num_samples):
        sampling = Sampling(max_tokens=length, seed=seed, **options)
        one, other = sampled(sampling, length, None), sampled(sampling, length, random.Random(seed))
        assert one == other
        plain[one] += 1
        drafted[other] += 1
    assert set(drafted) <= set(expected)
    common = [o for o, p in expected.items() if p * num_samples >= 5]
    rest = (num_samples - sum(drafted[o] for o in common), num_samples * (1 - sum(expected[o] for o in common)))
    pairs = [(drafted[o], num_samples * expected[o]) for o in common] + ([rest] if rest[1] >= 1 else [])
    observed, wanted = zip(*pairs, strict=True)
    scale = sum(observed) / sum(wanted)
    assert chisquare(observed, [w * scale for w in wanted]).pvalue > 1e-3


def ends(sampling: Sampling, outcome: Sequence[int]) -> bool:
    """Whether an outcome shorter than asked for is over: by the end token, or because the grammar lets nothing follow."""
    if outcome[-1] == 0:
        return True
    guide = GRAMMARS.guide(sampling, [0])
    return guide is not None and [guide.append(token) for token in outcome][-1]
