"""The market's records: what is seen is counted, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.market import CALM_S, ON_DEMAND, SPOT, Market, Observations, Offer, Pool

A, B = Pool("a"), Pool("b", "g5.2xlarge")


def test_a_pool_says_its_name():
    assert (str(A), str(B)) == ("a", "b/g5.2xlarge")


def test_a_negative_price_is_refused():
    with pytest.raises(ValueError, match="price_per_hour is -1"):
        Offer(A, SPOT, -1.0)


def test_a_market_without_offers_is_refused():
    with pytest.raises(ValueError, match="no offer"):
        Market(())


def test_offers_come_cheapest_first():
    market = Market((Offer(A, SPOT, 0.4), Offer(B, SPOT, 0.3), Offer(A, ON_DEMAND, 1.0)))
    assert [o.pool for o in market.spot()] == [B, A]
    assert [o.price_per_hour for o in market.on_demand()] == [1.0]


def test_observations_count_hours_and_losses():
    seen = Observations().after(0.0, held={A: 4}).after(3600.0, held={A: 4}).after(7200.0, held={A: 4}, lost={A: 1}, refused={B: 1})
    assert seen.of(A).machine_hours == 8.0
    assert seen.of(A).num_lost == 1
    assert seen.of(A).last_lost_s == 7200.0
    assert sum(seen.of(A).collapses) == 0
    assert seen.of(B).last_refused_s == 7200.0
    assert seen.of(Pool("never")).machine_hours == 0


def test_a_collapse_is_booked_at_the_age_of_the_calm_before_it():
    seen = Observations().after(0.0, held={A: 4}).after(5000.0, held={A: 4}).after(5000.0, held={A: 4}, lost={A: 4})
    assert seen.of(A).collapses[CALM_S.index(4800.0)] == 1
    assert seen.of(A).num_lost == 0
    assert seen.of(A).calm_since_s is None
    assert seen.after(6000.0, held={A: 2}).of(A).age(6000.0) == 0


def test_a_collapse_that_was_announced_in_time_is_no_danger():
    before = Observations().after(0.0, held={A: 4}).after(700.0, held={A: 4})
    told = before.after(700.0, held={A: 4}, lost={A: 4}, warned={A: 4})
    partly = before.after(700.0, held={A: 4}, lost={A: 4}, warned={A: 2})
    assert (sum(told.of(A).collapses), sum(partly.of(A).collapses)) == (0, 1)
    assert told.of(A).calm_since_s is None
    assert told.of(A).last_lost_s == 700.0


def test_a_shortage_is_a_quarter_of_all_machines_at_once():
    seen = Observations().after(0.0, held={A: 6, B: 6}, on_demand=8)
    assert seen.after(60.0, held={A: 6, B: 6}, lost={A: 5}, on_demand=8).last_short_s is None
    short = seen.after(60.0, held={A: 6, B: 6}, lost={A: 5, B: 1}, on_demand=8)
    assert short.last_short_s == 60.0
    assert short.after(120.0, held={A: 1, B: 5}).last_short_s == 60.0


def test_a_pool_that_holds_nearly_all_is_alone():
    seen = Observations().after(0.0, held={A: 9, B: 1}).after(3600.0, held={A: 9, B: 1})
    assert sum(seen.of(A).alone) == 1.0
    assert sum(seen.of(B).alone) == 0.0


@given(st.lists(st.tuples(st.floats(1, 1e4), st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_hours_by_age_add_up(looks):
    seen, now_s, expected = Observations().after(0.0, held={}), 0.0, 0.0
    for span_s, held, lost in looks:
        now_s += span_s
        expected += held * span_s / 3600
        seen = seen.after(now_s, held={A: held}, lost={A: min(held, lost)})
    assert seen.of(A).machine_hours == pytest.approx(expected)
    assert seen.spot_hours == pytest.approx(expected)
    assert sum(seen.of(A).hours) == pytest.approx(sum(span for span, held, _ in looks if held) / 3600)


@given(st.lists(st.tuples(st.integers(1, 10_000), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20))
def test_a_clock_that_shows_the_year_tells_the_same_as_one_that_starts_at_zero(looks):
    """Production's clock is unix time, the simulator's begins at zero: the first look is the beginning for both."""
    records = []
    for zero in (0, 1_800_000_000):
        seen, now_s = Observations(), zero
        for span_s, held, lost in looks:
            now_s += span_s
            seen = seen.after(now_s, held={A: held}, lost={A: min(held, lost)})
        records.append([seen.hours, seen.spot_hours, seen.of(A).machine_hours, seen.of(A).age(now_s), *seen.of(A).hours])
    assert records[0] == pytest.approx(records[1])
