"""Large-star and small-star: the components stay, the steps end, and it does not matter which task has which node."""

from __future__ import annotations

import doctest

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import pipelines.curate.stars
from pipelines.curate.components import components
from pipelines.curate.stars import by_rounds, large_star, small_star

PAIRS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).filter(lambda p: p[0] != p[1]), max_size=60)


def edges(pairs):
    ordered = np.array([(max(p), min(p)) for p in pairs], np.int64).reshape(-1, 2)
    return ordered[:, 0], ordered[:, 1]


def test_the_worked_examples():
    assert doctest.testmod(pipelines.curate.stars).failed == 0


@settings(deadline=None)
@given(PAIRS)
def test_every_node_ends_on_the_least_of_its_component(pairs):
    greater, least, _ = by_rounds(*edges(pairs))
    place, component = components(*edges(pairs))
    want = {p: c for p, c in zip(place.tolist(), component.tolist(), strict=True) if p != c}
    assert dict(zip(greater.tolist(), least.tolist(), strict=True)) == want
    assert greater.size == len(want), "each hangs on one"


@settings(deadline=None)
@given(PAIRS, st.integers(1, 5))
def test_a_step_over_shards_is_the_step_over_all(pairs, shards):
    greater, least = edges(pairs)
    both = np.concatenate((greater, least)), np.concatenate((least, greater))
    for step, node, other in ((large_star, *both), (small_star, greater, least)):
        whole = step(node, other)
        parts = [step(node[node % shards == s], other[node % shards == s]) for s in range(shards)]
        together = {pair for part in parts for pair in zip(part[0].tolist(), part[1].tolist(), strict=True)}
        assert together == set(zip(whole[0].tolist(), whole[1].tolist(), strict=True))
        assert sum(part[2] for part in parts) == whole[2]


def test_rounds_grow_with_the_logarithm_of_a_chain():
    rounds = {}
    for power in (4, 8, 12):
        places = np.random.default_rng(power).permutation(1 << power)
        chain = [tuple(pair) for pair in zip(places[1:].tolist(), places[:-1].tolist(), strict=True)]
        greater, least, rounds[power] = by_rounds(*edges(chain))
        assert set(least.tolist()) == {0}
        assert greater.size == (1 << power) - 1
    assert rounds[12] <= rounds[4] + 8 + 1, f"no more than one a doubling: {rounds}"


def test_stars_are_left_alone():
    greater, least = np.arange(1, 50), np.zeros(49, np.int64)
    assert by_rounds(greater, least)[2] == 1
