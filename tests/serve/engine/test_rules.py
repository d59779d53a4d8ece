"""Rules: each against transformers' own processor, and at a drafted position the same as if the draft were output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MinNewTokensLengthLogitsProcessor, RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor

from serve.engine.request import Sampling
from serve.engine.rules import Rules, Tally, rules

VOCAB = 30
tokens = st.lists(st.integers(0, VOCAB - 1), max_size=12)


def made(seed: int, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def applied(logits: torch.Tensor, prompt: list[int], output: list[int], draft: list[int], **options: Any) -> torch.Tensor:
    """Logits under the rules of a request that has emitted `output`, whose end token is 3."""
    found = rules(Sampling(**options), prompt, [3], VOCAB)
    assert isinstance(found, Rules)
    for token in output:
        assert not found.append(token)
    here, there = logits.numpy().copy(), logits.clone()
    found.apply(here, draft)
    found.apply_there(there, draft)
    assert torch.equal(torch.from_numpy(here), there), "the same on a device"
    return there


@given(st.integers(0, 10**6), tokens, tokens, st.sampled_from([0.5, 1.3, 4.0]))
def test_the_repetition_penalty_is_that_of_transformers(seed: int, prompt: list[int], output: list[int], penalty: float) -> None:
    context = torch.tensor([[5, *prompt, *output]])
    expected = RepetitionPenaltyLogitsProcessor(penalty)(context, made(seed))
    assert torch.allclose(applied(made(seed), [5, *prompt], output, [], repetition_penalty=penalty), expected, rtol=1e-12)


@given(st.integers(0, 10**6), st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), min_size=1, max_size=5))
def test_biases_are_those_of_transformers(seed: int, bias: dict[int, float]) -> None:
    expected = SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])(torch.tensor([[1, 2]]), made(seed))
    found = applied(
        made(seed), [1, 2], [], [], logit_bias=tuple(bias.items()), repetition_penalty=1.0, min_tokens=0, presence_penalty=1e-300
    )
    assert torch.allclose(found, expected.double(), rtol=1e-5)  # theirs adds in float32


@pytest.mark.parametrize("num_output", [0, 1, 2, 3])
def test_the_minimum_length_is_that_of_transformers(num_output: int) -> None:
    output = [9] * num_output
    expected = MinNewTokensLengthLogitsProcessor(2, 2, 3)(torch.tensor([[1, 2, *output]]), made(1))
    assert torch.equal(applied(made(1), [1, 2], output, [], min_tokens=2), expected)


@given(st.integers(0, 10**6), tokens, tokens, st.floats(-2, 2), st.floats(-2, 2))
def test_presence_and_frequency_count_the_output_only(
    seed: int, prompt: list[int], output: list[int], presence: float, frequency: float
) -> None:
    """OpenAI's formula: mu[j] - c[j] * frequency - (c[j] > 0) * presence."""
    counts = torch.bincount(torch.tensor(output, dtype=torch.long), minlength=VOCAB).double()
    expected = made(seed) - counts * frequency - (counts > 0).double() * presence
    found = applied(made(seed), prompt, output, [], presence_penalty=presence, frequency_penalty=frequency, logit_bias=((0, 0.0),))
    assert torch.allclose(found, expected, rtol=1e-12)


@settings(max_examples=60)
@given(st.integers(0, 10**6), tokens, tokens, tokens)
def test_a_draft_counts_as_output_at_the_positions_after_it(seed: int, prompt: list[int], output: list[int], draft: list[int]) -> None:
    options = {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2, "min_tokens": 9, "logit_bias": ((4, 1.5),)}
    logits = made(seed, len(draft) + 1)
    together = applied(logits, prompt, output, draft, **options)
    for i in range(len(draft) + 1):
        alone = applied(logits[i : i + 1], prompt, [*output, *draft[:i]], [], **options)
        assert torch.equal(together[i : i + 1], alone)


def test_a_draft_that_failed_leaves_no_trace() -> None:
    sampling = Sampling(repetition_penalty=1.5, frequency_penalty=1.0)
    once, again = (rules(sampling, [1, 2], [3], VOCAB) for _ in range(2))
    assert once is not None
    assert again is not None
    once.apply_there(made(0, 4), [7, 8, 9])
    first, second = made(1), made(1)
    for each, logits in ((once, first), (again, second)):
        each.append(11)
        each.apply_there(logits, [])
    assert torch.equal(first, second)


def test_most_requests_have_no_rules_and_a_bias_stays_inside_the_vocabulary() -> None:
    assert rules(Sampling(top_k=5, top_p=0.5, min_p=0.1, temperature=2.0), [1], [3], VOCAB) is None
    with pytest.raises(ValueError, match="logit_bias: token 30 is outside the vocabulary of 30"):
        rules(Sampling(logit_bias=((30, 1.0),)), [1], [3], VOCAB)


def test_a_tally_outgrows_its_first_room() -> None:
    tally = Tally([])
    for token in range(200):
        tally.append(token)
    tokens, counts = tally.table(draft=[])
    assert tokens.tolist() == list(range(200))
    assert counts.tolist() == [[1.0] * 200]
