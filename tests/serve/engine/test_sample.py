"""Sampling: keyed, correctly distributed, and lossless under drafting."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from serve.engine.request import Sampling
from serve.engine.sample import Question, draw, processed, uniform, verify

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


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    everything = processed(logits, Sampling())
    assert processed(logits, Sampling(top_k=2)).nonzero()[:, 1].tolist() == [1, 3]
    assert processed(logits, Sampling(top_p=float(everything[0, 1]) + 1e-6)).nonzero()[:, 1].tolist() == [1, 3]
    assert processed(logits, Sampling(top_p=1e-9)).nonzero()[:, 1].tolist() == [1]
    for sampling in (Sampling(), Sampling(top_k=3), Sampling(top_p=0.7), Sampling(temperature=0.3, top_k=3, top_p=0.9)):
        assert float(processed(logits, sampling).sum()) == pytest.approx(1.0)


def test_draw_inverts_the_distribution_function_and_never_gives_the_impossible() -> None:
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64)
    assert draw(probabilities.expand(4, -1), [1e-12, 0.2499999, 0.2500001, 1 - 1e-12]) == [1, 1, 3, 3]


def test_a_tiny_temperature_is_nearly_greedy() -> None:
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)).double()
    nearly = draw(processed(logits, Sampling(temperature=1e-3)), [0.5] * 20)
    assert nearly == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [1e-308, 1e-320, 5e-324])
@pytest.mark.parametrize("rest", [{}, {"top_k": 3}, {"top_p": 0.9}])
def test_the_tiniest_temperature_is_greedy(temperature: float, rest: dict[str, float]) -> None:
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    probabilities = processed(logits, Sampling(temperature=temperature, **rest))
    assert probabilities.sum(-1).tolist() == [1.0] * 20
    assert draw(probabilities, [0.5] * 20) == logits.argmax(-1).tolist()


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
    one = processed(toy_logits([1, 2])[None], Sampling(temperature=0.8))[0]
    expected = [float(one[a] * processed(toy_logits([2, a])[None], Sampling(temperature=0.8))[0, b]) for a in range(5) for b in range(5)]
    seen = [(c, num_samples * e) for c, e in zip(counts, expected, strict=True) if num_samples * e >= 5]
    rest = (num_samples - sum(c for c, _ in seen), num_samples - sum(e for _, e in seen))
    observed, wanted = zip(*[*seen, rest], strict=True)
    assert chisquare(observed, wanted).pvalue > 1e-3


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
