"""The quick draw of one token: the very tokens of the plain distribution, its short cuts exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.distribution import draw, processed
from serve.engine.pick import pick, reach
from serve.engine.request import Sampling


def made(seed: int, vocab_size: int, kind: str) -> torch.Tensor:
    """Logits: spread, so coarse that most of them tie, nearly flat, or mostly impossible."""
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)) * 3
    if kind == "ties":
        return logits.bfloat16().round().float()
    if kind == "flat":
        return logits / 300
    if kind == "masked":
        return logits.masked_fill(torch.arange(vocab_size) % 7 > 0, -torch.inf)
    return logits


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    vocab_size=st.sampled_from([1, 2, 40, 511, 513, 3000, 40_001]),
    kind=st.sampled_from(["spread", "ties", "flat", "masked"]),
    temperature=st.sampled_from([0.0001, 0.3, 1.0, 7.0, 5e-324]),
    top_k=st.sampled_from([0, 1, 2, 50, 300]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.3, 1e-9]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    uniform=st.floats(0.0, 1.0, exclude_min=True),
)
def test_it_is_the_token_of_the_plain_distribution(
    seed: int, vocab_size: int, kind: str, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float
) -> None:
    logits = made(seed, vocab_size, kind)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    found = pick(logits.numpy(), float(logits.max()), sampling, uniform)
    plain = processed(logits[None], [sampling])
    (expected,) = draw(plain, [uniform]).tolist()
    if found != expected:  # allowed only where the cumulative sum passes the target within a rounding of it
        edges = plain[0].cumsum(-1)[min(found, expected) : max(found, expected)]
        assert float((edges - uniform).abs().min()) < 1e-12
        assert float(plain[0, found]) > 0


@given(
    st.lists(st.sampled_from([-1.0, 0.0, 0.5, 0.5, 2.0, -np.inf]), min_size=300, max_size=3000),
    st.integers(1, 12),
)
def test_reach_finds_all_that_are_no_less_than_the_nth(values: list[float], count: int) -> None:
    row = np.array(values)
    least = sorted(values, reverse=True)[count - 1]
    assert reach(row, count).tolist() == [i for i, value in enumerate(values) if value >= least]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=3), Sampling(top_p=0.9), Sampling(min_p=0.1)])
def test_what_is_impossible_is_never_found_even_at_the_very_end(sampling: Sampling) -> None:
    row = np.array([-np.inf, 1.0, -np.inf, 1.0, -np.inf])
    assert [pick(row, 1.0, sampling, u) for u in (1e-300, 0.499, 0.501, 1.0)] == [1, 1, 3, 3]
