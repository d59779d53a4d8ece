"""Odds: priors that make sense, and chances that become calibrated."""

from __future__ import annotations

import random

import pytest

from serve.engine.draft_odds import Odds, cell


def chance(odds: Odds, own: int, own_cell: int, store: int = -1, store_cell: int = 0, known: int = 0) -> float:
    return odds.chance(odds.weigh(own, own_cell, store, store_cell, known)[1], 1, 2)


def test_cells_tell_lengths_counts_and_shares_apart_as_far_as_they_matter() -> None:
    assert len({cell(1, 1, 1), cell(2, 1, 1), cell(2, 2, 2), cell(2, 2, 3), cell(2, 2, 9)}) == 5
    assert cell(8, 1, 1) == cell(11, 1, 1)
    assert cell(3, 200, 200) == cell(3, 5000, 5000)


def test_agreement_raises_and_disagreement_lowers_the_chance() -> None:
    odds, own, store = Odds(), cell(3, 2, 2), cell(2, 2, 2)
    assert chance(odds, 7, own, 7, store, 2) > chance(odds, 7, own)
    assert chance(odds, 7, cell(1, 1, 1), 8, store, 2) < chance(odds, 7, cell(1, 1, 1))


def test_the_likelier_of_two_is_taken() -> None:
    odds = Odds()
    assert odds.weigh(7, cell(8, 3, 3), 9, cell(1, 1, 9), 1)[0] == 7
    assert odds.weigh(7, cell(1, 1, 9), 9, cell(4, 9, 9), 4)[0] == 9
    assert odds.weigh(-1, 0, 9, cell(1, 1, 9), 1)[0] == 9


@pytest.mark.parametrize("truth", [0.05, 0.5, 0.95])
def test_chances_become_calibrated(truth: float) -> None:
    odds, rng, given = Odds(), random.Random(0), []
    for _ in range(1500):
        _, log_odds, cells = odds.weigh(rng.randrange(500), cell(2, 1, 1), -1, 0, 0)
        given.append(odds.chance(log_odds, 0, 2))
        odds.learn(cells, given[-1], rng.random() < truth, 0, 2)
    late = given[500:]
    assert sum(late) / len(late) == pytest.approx(truth, abs=0.05)


def test_the_rate_is_that_of_the_latest_steps_and_never_below_one() -> None:
    odds = Odds()
    for _ in range(1000):
        odds.spend(3, 1.5)
    assert odds.rate == pytest.approx(2.0, rel=1e-3)
    for _ in range(1000):
        odds.spend(1, 4.0)
    assert odds.rate == 1.0
