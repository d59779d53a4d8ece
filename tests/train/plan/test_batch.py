"""Batch and rate grow and fall with compute as published."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.plan import batch as module
from train.plan.batch import GOOD_STEPS, NARROW_RATE, batch_tokens, learning_rate


def test_doctests():
    assert doctest.testmod(module).failed == 0


@given(st.floats(1e10, 1e24), st.floats(1e4, 1e13))
def test_there_are_always_enough_steps(flops, positions):
    assert positions / batch_tokens(flops, positions) >= GOOD_STEPS * (1 - 1e-9)
    assert batch_tokens(10 * flops, positions) >= batch_tokens(flops, positions)


@given(st.floats(1e10, 1e24), st.integers(16, 4096))
def test_rates_fall_with_width_and_in_the_published_range_with_compute(flops, width):
    assert 0 < learning_rate(flops, 2 * width) <= learning_rate(flops, width)
    assert learning_rate(100 * max(flops, 1e17), width) < learning_rate(max(flops, 1e17), width)


def test_the_published_rate_and_that_of_small_runs():
    assert learning_rate(1e20, 64) == learning_rate(1e20, 1024) == pytest.approx(0.3118 * 1e20**-0.125, rel=5e-3)
    assert learning_rate(1e10, 64) == learning_rate(1e14, 64) == pytest.approx(NARROW_RATE / 64)
    assert learning_rate(10**15.5, 512) == pytest.approx((NARROW_RATE / 512 * 0.3118 * 10 ** (-0.125 * 15.5)) ** 0.5, rel=5e-3)
