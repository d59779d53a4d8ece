"""The hedge pays for itself, and begins where the danger is greatest."""

import pytest

from cluster.market import CALM_S, Observations, Pool, PoolRecord
from cluster.risk import hedged_ages, lost_per_start, saved_share

DAY_S = 86400.0


def seen(collapses=(9.0, 5, 3, 1, 1, 0, 0, 0), alone=(3.0,) * len(CALM_S)):
    record = PoolRecord(hours=(10.0,) * len(CALM_S), collapses=collapses, alone=alone)
    return Observations(10 * DAY_S, {Pool("a"): record}, num_started=100.0, spot_hours=900.0, on_demand_hours=100.0, began_s=0.0)


def test_nothing_saved_nothing_spent():
    assert hedged_ages(seen(), cost=0.25, saved=0.0, lost_s=83, allowed=0.0) == {}


def test_the_most_dangerous_ages_first():
    for saved in (0.005, 0.01, 0.02, 0.05):
        ages = hedged_ages(seen(), cost=0.25, saved=saved, lost_s=83, allowed=0.0)
        assert set(ages) == set(range(len(ages))), "this pool is the safer the longer it has been calm"
        assert all(share == 1.0 for age, share in ages.items() if age < len(ages) - 1)
    assert ages


def test_the_hedge_costs_no_more_than_was_saved():
    ages = hedged_ages(seen(), cost=0.25, saved=0.01, lost_s=83, allowed=0.0)
    assert sum(3.5 * 0.25 * share for share in ages.values()) == pytest.approx(0.01 * 240)


def test_where_little_can_fail_nothing_is_spent():
    assert hedged_ages(seen(), cost=0.25, saved=0.05, lost_s=83, allowed=0.5) == {}


def test_what_was_saved_is_bridges_and_headroom():
    assert saved_share(Observations(), cold_start_s=180, headroom=0.1) == 0.0
    bridges = saved_share(seen(), cold_start_s=180, headroom=0.0)
    assert bridges > 100 * 180 / 3600 / 1000
    assert saved_share(seen(), cold_start_s=180, headroom=0.1) > bridges


def test_machines_lost_one_by_one():
    calm = Observations(0.0, {Pool("a"): PoolRecord(machine_hours=900.0, num_lost=0.0)})
    rough = Observations(0.0, {Pool("a"): PoolRecord(machine_hours=900.0, num_lost=200.0)})
    assert lost_per_start(calm, 180.0) == 0.0
    assert lost_per_start(rough, 180.0) == 0.01
