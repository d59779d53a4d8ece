"""The cost of a wider step: right for any rising curve, with hiccups, as contexts grow, and never wrong for ever."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.engine.step_cost import StepCost

WIDTHS = (1, 1, 5, 9, 17, 3, 12, 2)


def learn(seconds: Callable[[int], float], noise: float = 0.0, steps: int = 1000) -> StepCost:
    cost, rng = StepCost(), random.Random(0)
    for _ in range(steps):
        width = rng.choice(WIDTHS)
        hiccup = 10.0 if noise and rng.random() < 0.02 else 1.0
        cost.observe(width, seconds(width) * (1 + noise * rng.random()) * hiccup)
    return cost


def slope(width: int) -> float:
    return 0.010 + 0.001 * width


def flat_then_rising(width: int) -> float:
    return 0.010 * (1.0 if width <= 8 else 1.0 + 0.06 * (width - 8))


@pytest.mark.parametrize("seconds", [slope, flat_then_rising, lambda width: 0.01, lambda width: 0.01 * width])
@pytest.mark.parametrize(("noise", "tolerance"), [(0.0, 0.06), (0.1, 0.12)])
def test_ratios_are_those_of_the_steps(seconds: Callable[[int], float], noise: float, tolerance: float) -> None:
    cost = learn(seconds, noise)
    for more in (4, 8, 16):
        assert cost.ratio(1, more) == pytest.approx(seconds(1 + more) / seconds(1), rel=tolerance)


def test_tokens_that_ride_free_are_free_until_drafts_are_long() -> None:
    cost = learn(flat_then_rising)
    for _ in range(100):
        cost.observe(3, flat_then_rising(3))
    assert cost.verify_cost(1) < 0.01
    for _ in range(100):
        cost.observe(17, flat_then_rising(17))
    assert cost.verify_cost(1) > 0.025
    assert learn(slope).verify_cost(1) == pytest.approx(1 / 11, abs=0.01)
    assert learn(lambda width: 0.01 * width).verify_cost(1) > 0.9


def test_more_sequences_make_a_draft_dearer_for_all() -> None:
    cost = learn(slope)
    assert cost.verify_cost(1) < cost.verify_cost(4) < cost.verify_cost(16)


def test_steps_that_grow_slower_by_longer_contexts_do_not_look_like_dear_drafts() -> None:
    cost = StepCost()
    for step in range(400):  # plain steps first, drafts later, when every step takes thrice as long
        cost.observe(1 if step < 200 or step % 2 else 9, 0.010 * (1 + step / 200))
    assert cost.ratio(1, 8) < 1.1


def test_plain_steps_in_a_row_lead_back_to_the_prior() -> None:
    cost = learn(lambda width: 0.01 * width)
    assert cost.verify_cost(1) > 0.9
    for _ in range(5000):
        cost.observe(1, 0.01)
    assert cost.verify_cost(1) < 0.1


def test_a_hiccup_moves_it_little() -> None:
    cost = learn(slope)
    before = cost.verify_cost(1)
    cost.observe(1, slope(1))
    cost.observe(9, 1000 * slope(9))
    assert cost.verify_cost(1) == pytest.approx(before, rel=0.1)


@given(st.lists(st.tuples(st.integers(1, 2000), st.floats(0.0, 1e6)), max_size=60), st.integers(0, 600))
def test_the_cost_never_falls_with_the_width(steps: list[tuple[int, float]], num_sequences: int) -> None:
    cost = StepCost()
    for width, seconds in steps:
        cost.observe(width, seconds)
    ratios = [cost.ratio(1, more) for more in (0, 1, 3, 8, 20, 100, 600)]
    assert ratios[0] == 1.0
    assert ratios == sorted(ratios)
    assert cost.verify_cost(num_sequences) >= 0.0
