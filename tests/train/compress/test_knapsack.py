"""The knapsack against every plan there is, and its promises about limits."""

from __future__ import annotations

import doctest
import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import train.compress.knapsack
from train.compress.knapsack import frontier

Groups = st.lists(
    st.lists(st.tuples(st.integers(0, 60), st.floats(0, 10, allow_subnormal=False)), min_size=1, max_size=4), min_size=1, max_size=5
)


def every_plan(groups):
    return [(sum(c for c, _ in plan), sum(h for _, h in plan)) for plan in itertools.product(*groups)]


def test_the_worked_example():
    assert doctest.testmod(train.compress.knapsack).failed == 0


@given(Groups, st.floats(0, 50))
@settings(max_examples=150)
def test_no_plan_is_better_by_more_than_the_rounding(groups, limit):
    found, cells = frontier(groups, cells=2000), 2000
    cell = sum(max(c for c, _ in g) - min(c for c, _ in g) for g in groups) / cells
    fitting = [cost for cost, harm in every_plan(groups) if harm <= limit - 1e-9]
    index = found.within_harm(limit)
    if fitting:
        assert found.harms[index] <= limit
        assert found.costs[index] <= min(fitting) + len(groups) * cell + 1e-9
    affordable = [harm for cost, harm in every_plan(groups) if cost <= limit - len(groups) * cell - 1e-9]
    if affordable:
        assert found.costs[found.within_cost(limit)] <= limit
        assert found.harms[found.within_cost(limit)] <= min(affordable) + 1e-9


@given(Groups)
@settings(max_examples=100)
def test_costs_fall_and_harms_rise_and_both_are_those_of_the_choices(groups):
    found = frontier(groups)
    assert (np.diff(found.costs) < 0).all()
    assert (np.diff(found.harms) > 0).all()
    for cost, harm, choice in zip(found.costs, found.harms, found.choices, strict=True):
        taken = [group[option] for group, option in zip(groups, choice, strict=True)]
        assert abs(cost - sum(c for c, _ in taken)) < 1e-9
        assert abs(harm - sum(h for _, h in taken)) < 1e-9


@given(Groups, st.lists(st.floats(0, 50), min_size=2, max_size=6))
@settings(max_examples=60)
def test_looser_limits_never_cost_more(groups, limits):
    found = frontier(groups)
    plans = [found.within_harm(limit) for limit in sorted(limits)]
    costs = [found.costs[index] for index in plans if index is not None]
    assert costs == sorted(costs, reverse=True)
    assert None not in plans[next((i for i, p in enumerate(plans) if p is not None), len(plans)) :]
