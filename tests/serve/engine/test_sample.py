"""Sampling: keyed, correctly distributed, and lossless under drafting."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from serve.engine.distribution import processed
from serve.engine.request import Sampling
from serve.engine.rules import rules
from serve.engine.sample import Question, _held, _verify_here, _verify_there, uniform, verify

seeds = st.integers(0, 2**63 - 1)


@settings(deadline=None)
@given(seeds, st.integers(0, 1000), st.integers(0, 100_000))
def test_uniform_is_inside_the_unit_interval(seed: int, choice: int, position: int) -> None:
    assert 0.0 < uniform(seed, choice, position) < 1.0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_uniform_is_uniform_along_each_of_its_keys(axis: int) -> None:
    keys = [[7, 3, 11] for _ in range(20_000)]
    values = []
    for i, key in enumerate(keys):
        key[axis] = i
        values.append(uniform(*key))
    assert kstest(values, "uniform").pvalue > 1e-4
    pairs = torch.tensor(values).view(-1, 2)
    assert abs(float(torch.corrcoef(pairs.T)[0, 1])) < 0.04


def toy_logits(tokens: list[int]) -> torch.Tensor:
    """A model over 5 tokens: the next one depends on the last two."""
    key = hash(tuple(tokens[-2:])) & 0xFFFF
    return torch.randn(5, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


def generate(prompt: list[int], sampling: Sampling, length: int, guess: random.Random | None) -> list[int]:
    """Continue a prompt by `verify`; with `guess`, under random drafts."""
    tokens, end = list(prompt), len(prompt) + length
    while len(tokens) < end:
        draft = [guess.randrange(5) for _ in range(min(guess.randrange(4), end - len(tokens) - 1))] if guess else []
        rows = torch.stack([toy_logits(tokens + draft[:i]) for i in range(len(draft) + 1)])
        tokens += verify([Question(sampling, 0, len(tokens), draft)], rows)[0].tokens
    return tokens[len(prompt) :]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafts_change_nothing(temperature: float) -> None:
    for seed in range(30):
        sampling = Sampling(temperature=temperature, seed=seed)
        plain = generate([1, 2], sampling, 12, None)
        assert generate([1, 2], sampling, 12, random.Random(seed)) == plain


def test_the_sampled_distribution_under_drafts_is_the_models() -> None:
    counts = [0] * 25
    num_samples = 3000
    for seed in range(num_samples):
        first, second = generate([1, 2], Sampling(temperature=0.8, seed=seed), 2, random.Random(seed))
        counts[5 * first + second] += 1
    one = processed(toy_logits([1, 2])[None], [Sampling(temperature=0.8)])[0]
    expected = [float(one[a] * processed(toy_logits([2, a])[None], [Sampling(temperature=0.8)])[0, b]) for a in range(5) for b in range(5)]
    seen = [(c, num_samples * e) for c, e in zip(counts, expected, strict=True) if num_samples * e >= 5]
    rest = (num_samples - sum(c for c, _ in seen), num_samples - sum(e for _, e in seen))
    observed, wanted = zip(*[*seen, rest], strict=True)
    assert chisquare(observed, wanted).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_on_a_device_the_tokens_are_the_same(dtype: torch.dtype) -> None:
    """The way of devices, on the CPU: all rows together, by the plain distribution."""
    options: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 0.0, "repetition_penalty": 1.7},
        {"top_k": 5, "min_p": 0.01, "frequency_penalty": 0.5, "logit_bias": ((3, 2.0),)},
        {"temperature": 2.0},
    ]
    for seed in range(20):
        rng = random.Random(seed)
        logits = (torch.randn(30, 600, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3).to(dtype)
        questions, row = [], 0
        for number, fields in enumerate(options):
            sampling = Sampling(seed=seed, **fields)
            best = logits[row : row + 5].argmax(-1).tolist()
            draft = [token if rng.random() < 0.8 else 1 for token in best[: rng.randrange(5)]]
            questions.append(Question(sampling, number, 9, draft, rules(sampling, [2, 3, 5], [0], 600)))
            row += len(draft) + 1
        here, there = _verify_here(questions, logits[:row]), _verify_there(questions, logits[:row])
        for question, (drawn, best), (other, likeliest) in zip(questions, here, there, strict=True):
            assert (_held(question.draft, drawn), best) == (_held(question.draft, other), likeliest)


def test_the_likeliest_are_told_at_every_position() -> None:
    logits = torch.eye(6)[[3, 1, 5, 2, 4]]
    questions = [Question(Sampling(temperature=0), 0, 5, [3, 2]), Question(Sampling(seed=1, temperature=0.8), 0, 5, [0])]
    assert [run.likeliest for run in verify(questions, logits)] == [[3, 1, 5], [2, 4]]


RECORDED: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [23, 19, 9, 14, 22, 8, 337, 1834, 4, 1925, 1164, 414, 6006, 30921, 6578, 40909, 7832, 4517]),
    ({"temperature": 0.0}, [32, 4, 15, 0, 34, 13, 811, 2527, 1036, 2277, 1256, 1080, 36095, 41415, 13197, 43034, 17350, 2306]),
    ({"temperature": 0.7}, [27, 39, 8, 36, 23, 0, 1426, 2952, 948, 1480, 496, 108, 3228, 34120, 5420, 41149, 11928, 7037]),
    ({"top_k": 1}, [30, 9, 36, 39, 22, 20, 2130, 29, 840, 48, 999, 2598, 13003, 26093, 24442, 26263, 39424, 15547]),
    ({"top_k": 7}, [34, 9, 1, 24, 32, 13, 1284, 1657, 1455, 2357, 463, 211, 23654, 22877, 3142, 35272, 23259, 3368]),
    ({"top_k": 50, "top_p": 0.9}, [16, 25, 12, 23, 1, 29, 1004, 2623, 564, 1387, 966, 0, 15221, 39696, 17174, 34793, 1402, 19430]),
    ({"top_p": 0.5}, [10, 26, 34, 14, 32, 4, 2217, 2988, 390, 2301, 2114, 1139, 45177, 17319, 17462, 17115, 44019, 48868]),
    ({"top_p": 0.95, "temperature": 1.7}, [18, 20, 6, 28, 14, 4, 418, 1888, 420, 2173, 646, 330, 9785, 38173, 6046, 34678, 9678, 3549]),
    ({"temperature": 1e-300}, [6, 35, 16, 5, 5, 9, 1472, 2552, 615, 2190, 644, 2873, 43776, 32218, 10845, 24795, 7192, 43186]),
    ({"top_p": 0.999, "temperature": 5.0}, [8, 29, 4, 31, 13, 6, 606, 2218, 358, 2182, 716, 265, 9748, 36895, 5637, 36226, 11393, 4446]),
]
"""Tokens as the first version of this engine drew them, whose whole float64 distribution was sorted and summed for each."""


@pytest.mark.parametrize(("knobs", "recorded"), RECORDED)
def test_tokens_are_what_they_always_were(knobs: dict[str, Any], recorded: list[int]) -> None:
    number = [k for k, _ in RECORDED].index(knobs)
    drawn = []
    for vocab_size, dtype in ((40, torch.float32), (3001, torch.bfloat16), (50_000, torch.float32)):
        logits = (torch.randn(6, vocab_size, generator=torch.Generator().manual_seed(number)) * 4).to(dtype)
        questions = [Question(Sampling(seed=11 + i, **knobs), i % 2, 100 + i, []) for i in range(6)]
        drawn += [run.tokens[0] for run in verify(questions, logits)]
    assert drawn == recorded


def test_logprobs_are_the_models_own() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.1, 0.2, 3.0]])
    (run,) = verify([Question(Sampling(temperature=0, logprobs=2), 0, 5, [1])], logits)
    assert run.tokens == [1, 2]
    assert run.num_accepted == 1
    assert run.logprobs is not None
    first = torch.log_softmax(logits[0].double(), -1)
    assert run.logprobs[0].logprob == pytest.approx(float(first[1]))
    assert [token for token, _ in run.logprobs[0].top] == [1, 0]
    assert verify([Question(Sampling(temperature=0, logprobs=0), 0, 5, [])], logits[:1])[0].logprobs[0].top == ()
    (everything,) = verify([Question(Sampling(temperature=0, logprobs=100), 0, 5, [])], logits[:1])
    assert everything.logprobs is not None
    assert len(everything.logprobs[0].top) == logits.shape[-1]
