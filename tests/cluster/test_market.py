"""The market's records: what is seen is counted, and nothing else."""

import pytest

from cluster.market import ON_DEMAND, SPOT, Market, Observations, Offer, Pool

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
    seen = Observations().after(0.0, held={A: 2}).after(3600.0, held={A: 2}).after(7200.0, held={A: 2}, lost={A: 1}, refused={B: 1})
    assert seen.of(A).machine_hours == 4.0
    assert seen.of(A).num_lost == 1
    assert seen.of(A).last_lost_s == 7200.0
    assert seen.of(B).last_refused_s == 7200.0
    assert seen.of(Pool("never")).machine_hours == 0
