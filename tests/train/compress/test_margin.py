"""Foreseen bounds against certificates of drawn prompts."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

import train.compress.margin
from train.compress.certify import flips_upper
from train.compress.margin import foreseen

LENGTH = 64


def draw(rng, num_prompts, share, spread):
    """Flips of prompts that differ in how much they diverge."""
    own = rng.gamma(1 / spread, share * spread, num_prompts)[:, None]
    return list(rng.random((num_prompts, LENGTH)) < own)


def test_the_worked_example():
    assert doctest.testmod(train.compress.margin).failed == 0


@pytest.mark.parametrize(("share", "num_search", "num_held"), [(0.003, 96, 192), (0.02, 96, 96), (0.05, 64, 256)])
def test_the_certificate_stays_below_it_in_about_95_of_100_draws(share, num_search, num_held):
    rng = np.random.default_rng(0)
    below, excess = [], []
    for _ in range(150):
        search, held = draw(rng, num_search, share, 1.0), draw(rng, num_held, share, 1.0)
        bound = foreseen([each.sum() for each in search], [LENGTH] * num_search, num_held * LENGTH, counts=True)
        below.append(flips_upper(held, rng) <= bound)
        excess.append(bound / share)
    assert np.mean(below) >= 0.90
    assert np.median(excess) < 3


def test_more_held_out_tokens_need_less_margin():
    few, many = (foreseen([2, 0, 1, 0] * 8, [64] * 32, tokens, counts=True) for tokens in (2_000, 20_000))
    assert 3 / 4 / 64 < many < few


def test_what_does_not_vary_needs_no_margin():
    assert foreseen([0.64] * 8, [64] * 8, 512, counts=False) == pytest.approx(0.01)
