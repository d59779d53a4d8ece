"""The plain distribution: each option against transformers' own processor, and draws by inverse CDF."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList, MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from serve.engine.distribution import draw, processed
from serve.engine.request import Sampling

VOCAB = 60


def made(seed: int, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


@settings(max_examples=80)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.floats(0.05, 5.0),
    top_k=st.integers(0, VOCAB + 2),
    top_p=st.floats(0.01, 0.9999) | st.just(1.0),  # between them the two differ by how their sums are rounded
    min_p=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
)
def test_the_options_in_their_order_are_those_of_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    oracle = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    oracle += [TopKLogitsWarper(top_k)] if top_k else []
    oracle += [TopPLogitsWarper(top_p)] if top_p < 1.0 else []
    oracle += [MinPLogitsWarper(min_p)] if min_p else []
    expected = oracle(torch.zeros(1, 1, dtype=torch.long), made(seed)).softmax(-1)
    ours = processed(made(seed), [Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)])
    assert torch.equal(ours > 0, expected > 0)
    assert torch.allclose(ours, expected, rtol=1e-9, atol=1e-300)


KNOBS: list[dict[str, Any]] = [
    {},
    {"top_k": 3},
    {"top_p": 0.6},
    {"min_p": 0.1, "temperature": 2.0},
    {"top_k": 20, "top_p": 0.9, "min_p": 0.02, "temperature": 0.7},
    {"temperature": 1e-308},
]


def test_a_row_is_processed_as_if_it_were_alone() -> None:
    logits = made(0, len(KNOBS))
    samplings = [Sampling(**knobs) for knobs in KNOBS]
    together = processed(logits, samplings)
    alone = torch.cat([processed(logits[i : i + 1], [sampling]) for i, sampling in enumerate(samplings)])
    assert torch.equal(together > 0, alone > 0)
    assert torch.allclose(together, alone, rtol=1e-12)
    assert together.sum(-1).tolist() == pytest.approx([1.0] * len(KNOBS))


def test_of_equals_top_k_keeps_all_and_top_p_the_first() -> None:
    logits = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0]])
    assert processed(logits, [Sampling(top_k=2)]).nonzero()[:, 1].tolist() == [0, 2, 3]
    assert processed(torch.zeros(1, 4), [Sampling(top_p=0.5)]).nonzero()[:, 1].tolist() == [0, 1]
    assert processed(torch.zeros(1, 4), [Sampling(top_p=1e-9)]).nonzero()[:, 1].tolist() == [0]


def test_draw_inverts_the_distribution_function_and_never_gives_the_impossible() -> None:
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64)
    assert draw(probabilities.expand(5, -1), [1e-300, 0.2499999, 0.2500001, 1 - 1e-12, 1.0]).tolist() == [1, 1, 3, 3, 3]


@pytest.mark.parametrize("temperature", [1e-308, 1e-320, 5e-324])
@pytest.mark.parametrize("rest", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.5}])
def test_the_tiniest_temperature_is_greedy(temperature: float, rest: dict[str, float]) -> None:
    logits = made(0, 20)
    probabilities = processed(logits, [Sampling(temperature=temperature, **rest)] * 20)
    assert probabilities.sum(-1).tolist() == [1.0] * 20
    assert draw(probabilities, [0.5] * 20).tolist() == logits.argmax(-1).tolist()
