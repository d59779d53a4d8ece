"""Prices and losses: what is never negative, what grows with what, and worked examples."""

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.plan import price as module
from train.plan.catalogue import fleet_of, read_catalogue
from train.plan.laws import Interval
from train.plan.price import LONGEST_INTERVAL_S, Market, Rates, Tariff, bill, lost, save_interval_s
from train.plan.rented import rented


def fleet(text="16xH100"):
    return rented(fleet_of(text, read_catalogue()), vocab_size=32_000, sequence_length=2048)


TARIFF = Tariff(on_demand=100.0, spot=40.0, source="a test")


def test_doctests():
    assert doctest.testmod(module).failed == 0


def test_youngs_interval_of_the_whole_cluster():
    few, many = fleet("8xH100"), fleet("1024xH100")
    on_demand = Market()
    assert save_interval_s(1.0, 2.0, many, on_demand) == pytest.approx(math.sqrt(2 * 6300 * 3600 / 128))
    assert save_interval_s(1.0, 2.0, few, on_demand) == LONGEST_INTERVAL_S
    spot = Market(kind="spot")
    assert save_interval_s(1.0, 2.0, many, spot) == pytest.approx(math.sqrt(2 / (128 * (1 / 6300 + 0.0025) / 3600)))
    assert save_interval_s(0.001, 200.0, many, spot) == 200.0, "never before the last one is written"


@given(st.floats(0, 10), st.floats(0, 1), st.floats(1, 3600))
def test_losses_are_shares_and_grow_with_preemptions(rate, unannounced, interval_s):
    calm, wild = (Market(rates=Rates(preemptions_per_hour=r, unannounced_share=unannounced)) for r in (rate, rate + 1))
    for kind in ("on-demand", "spot"):
        share, paid, interruptions = lost(fleet(), calm, kind, interval_s)
        assert 0 <= paid <= share
        assert interruptions > 0
    assert lost(fleet(), wild, "spot", interval_s)[0] > lost(fleet(), calm, "spot", interval_s)[0]
    assert lost(fleet(), wild, "on-demand", interval_s) == lost(fleet(), calm, "on-demand", interval_s)


def test_a_worked_bill():
    seconds = Interval(36_000, 30_000, 50_000)
    market = Market(tariff=TARIFF, rates=Rates(preemptions_per_hour=0.1, unannounced_share=0.0, restart_s=90, replacement_s=360))
    made = bill(seconds, 600.0, fleet(), market, "spot")
    failures = 2 / 6300  # two machines
    paid = (failures * (300 + 180) + 0.2 * 180) / 3600
    assert made.dollars.value == pytest.approx(10 * 40 * (1 + paid))
    assert made.lost_share == pytest.approx(paid + (0.2 + failures) * 360 / 2 / 3600)
    assert made.hours.value == pytest.approx(10 * (1 + made.lost_share))
    assert made.interruptions == pytest.approx((0.2 + failures) * made.hours.value)
    fixed = bill(seconds, 600.0, fleet(), market, "on-demand")
    assert fixed.dollars.value == pytest.approx(1000, rel=1e-3)
    for each in (made, fixed):
        assert each.dollars.low < each.dollars.value < each.dollars.high


def test_without_a_tariff_there_is_no_price():
    assert bill(Interval(1, 1, 1), 600.0, fleet(), Market(), "spot").dollars is None
