"""Prices over time: integrals that add up, and what stands in where a pool has no price."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import price_book
from cluster.market import ON_DEMAND, SPOT, Pool
from cluster.price_book import ANY, Price, PriceBook, own_prices

POOL = Pool("us-west-2a", "m7i.4xlarge")
MOMENTS = st.integers(-1000, 1000)


def test_doctests():
    assert doctest.testmod(price_book).failed == 0


def book(*changes: tuple[int, int], pool: Pool = POOL) -> PriceBook:
    return PriceBook.of(Price(pool, SPOT, per_hour, since_s) for since_s, per_hour in changes)


@given(st.lists(st.tuples(MOMENTS, st.integers(0, 9)), min_size=1), MOMENTS, st.integers(0, 300))
def test_a_stay_costs_the_price_of_each_of_its_seconds(changes, start, seconds):
    kept = book(*changes)
    by_second = sum(kept.at(POOL, SPOT, start + second).per_hour for second in range(seconds)) / 3600
    assert kept.dollars(POOL, SPOT, start, start + seconds) == pytest.approx(by_second)


@given(st.lists(st.tuples(MOMENTS, st.integers(0, 9)), min_size=1), st.tuples(MOMENTS, MOMENTS, MOMENTS))
def test_a_stay_in_pieces_costs_what_it_costs_whole(changes, moments):
    kept, (start, cut, end) = book(*changes), sorted(moments)
    whole = kept.dollars(POOL, SPOT, start, end)
    assert whole == pytest.approx(kept.dollars(POOL, SPOT, start, cut) + kept.dollars(POOL, SPOT, cut, end))


@given(st.permutations([(0, 1), (10, 2), (20, 3)]))
def test_the_order_in_which_prices_are_learned_does_not_matter(changes):
    assert book(*changes).dollars(POOL, SPOT, 5, 25) == book((0, 1), (10, 2), (20, 3)).dollars(POOL, SPOT, 5, 25)


def test_a_new_price_touches_its_own_pool_alone():
    other = Pool("us-west-2b", "m7i.4xlarge")
    kept = book((0, 1), (10, 2)).with_prices([Price(other, SPOT, 3.0)])
    after = kept.with_prices([Price(other, SPOT, 4.0, since_s=5.0)])
    assert after.series[POOL, SPOT] is kept.series[POOL, SPOT]
    assert [price.per_hour for price in after.series[other, SPOT]] == [3.0, 4.0]
    assert len(kept.series[other, SPOT]) == 1, "a book does not change"


def test_the_nearest_price_counts():
    elsewhere, dear = Pool("us-west-2b", "m7i.4xlarge"), Pool("us-west-2c", "m7i.4xlarge")
    kept = PriceBook.of([Price(elsewhere, SPOT, 2.0), Price(dear, SPOT, 3.0)])
    assert kept.at(POOL, SPOT, 0).per_hour == 3.0, "the dearest zone's where this one has none"
    kept = kept.with_prices([Price(Pool("us-west-2", "m7i.4xlarge"), SPOT, 1.5)])
    assert kept.at(POOL, SPOT, 0).per_hour == 1.5, "the region's before another zone's"
    kept = kept.with_prices([Price(POOL, SPOT, 1.0)])
    assert kept.at(POOL, SPOT, 0).per_hour == 1.0
    assert kept.at(POOL, ON_DEMAND, 0) is None
    assert kept.dollars(Pool("us-west-2a", "c7i.large"), SPOT, 0, 9) is None


def test_what_the_owner_gives_holds_for_machines_of_no_known_price():
    kept = PriceBook.of(own_prices({"spot": 0.1, "on-demand": 0.3, "desk": 0.2}))
    laptop = Pool("local", ANY)
    assert (kept.at(laptop, SPOT, 0).per_hour, kept.at(laptop, ON_DEMAND, 0).per_hour) == (0.1, 0.3)
    assert kept.at(Pool("local", "desk"), ON_DEMAND, 0).per_hour == 0.2
    assert kept.at(Pool("local", "desk"), SPOT, 0).per_hour == 0.1


def test_a_price_that_is_none_is_refused():
    with pytest.raises(ValueError, match="dollars an hour"):
        Price(POOL, SPOT, float("nan"))
