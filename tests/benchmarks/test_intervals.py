"""Intervals: they hold what they should, shrink with more rounds, and examples run."""

import doctest

import numpy as np
import pytest

from benchmarks import intervals
from benchmarks.intervals import percentile, ratio_of_rates, ratio_of_rounds


def test_doctests():
    assert doctest.testmod(intervals).failed == 0


def test_a_machine_that_is_busy_for_both_leaves_the_ratio_alone():
    rng = np.random.default_rng(0)
    theirs = rng.uniform(1, 10, 9)  # a tenfold difference between rounds
    found = ratio_of_rounds(list(1.5 * theirs), list(theirs))
    assert found.value == pytest.approx(1.5)
    assert found.high - found.low < 1e-9


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng, covered = np.random.default_rng(1), 0
    for _ in range(30):
        b = rng.uniform(1, 2, 40)
        a = 1.2 * b * rng.normal(1, 0.1, 40)
        found = ratio_of_rates([(x, 1.0) for x in a], [(x, 1.0) for x in b])
        covered += found.low <= 1.2 <= found.high
    assert covered >= 25  # 28 or 29 expected


def test_processes_that_differ_for_as_long_as_they_live_make_the_interval_wider():
    rng = np.random.default_rng(3)
    luck = np.repeat(rng.normal(1, 0.1, 5), 10)  # five processes, ten rounds each
    ours, theirs = [(x, 1.0) for x in luck * rng.normal(1, 0.01, 50)], [(1.0, 1.0)] * 50
    plain, drawn = ratio_of_rates(ours, theirs), ratio_of_rates(ours, theirs, [i // 10 for i in range(50)])
    assert drawn.value == plain.value
    assert drawn.high - drawn.low > 1.5 * (plain.high - plain.low)


def test_more_rounds_are_surer():
    rng = np.random.default_rng(2)
    noisy = lambda n: [(x, 1.0) for x in rng.normal(2, 0.3, n)]  # noqa: E731
    few, many = ratio_of_rates(noisy(6), [(1.0, 1.0)] * 6), ratio_of_rates(noisy(200), [(1.0, 1.0)] * 200)
    assert many.high - many.low < few.high - few.low


def test_no_values_have_no_percentile():
    assert np.isnan(percentile([], 50))
    assert percentile([1, 2, 3], 50) == 2
