"""Batch and rate grow and fall with compute as published."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.plan import batch as module
from train.plan.batch import GOOD_STEPS, batch_tokens, learning_rate


def test_doctests():
    assert doctest.testmod(module).failed == 0


@given(st.floats(1e10, 1e24), st.floats(1e4, 1e13))
def test_there_are_always_enough_steps(flops, positions):
    assert positions / batch_tokens(flops, positions) >= GOOD_STEPS * (1 - 1e-9)
    assert batch_tokens(10 * flops, positions) >= batch_tokens(flops, positions)
    assert 0 < learning_rate(10 * flops) < learning_rate(flops)


def test_the_published_rate():
    assert learning_rate(1e20) == pytest.approx(0.3118 * 1e20**-0.125, rel=5e-3)
