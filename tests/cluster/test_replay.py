"""The replay: machines are granted within the market's limits, told, taken away and paid for."""

import numpy as np
import pytest

from cluster.autoscale import AutoscaleSettings, Target
from cluster.baselines import on_demand_only, spot_only
from cluster.demand import Replica, demand
from cluster.market import Pool
from cluster.replay import MarketRules, Replay, steps
from cluster.requests import Fluid, Rules
from cluster.traces import SpotTrace, steady_load

HOUR = 3600.0
SCALE = AutoscaleSettings(scale_down_after_s=60)


def trace(*changes, end_s=10 * HOUR, zone="z"):
    times, counts = zip(*changes, strict=True)
    return SpotTrace(zone, np.asarray(times, dtype=float), np.asarray(counts, dtype=float), end_s)


def replay(policy, traces, seconds=2 * HOUR, rules=None, market=None, load=10.0):
    rules, market = rules or Rules(), market or MarketRules()
    wanted = demand(steady_load(), Replica(), seconds=seconds, scale=load)
    run = Replay(policy, Fluid(wanted, rules, 32), rules, market, SCALE, tuple(Pool(t.zone) for t in traces))
    run.target = Target(4)
    return run.run(steps(traces, seconds=seconds, machines_each=lambda _: 1.0, rules=market, seed=0), seconds)


def test_every_change_is_a_step_and_drops_may_be_announced():
    traces = [trace((0, 4), (HOUR, 2), (2 * HOUR, 4))]
    told = steps(traces, seconds=3 * HOUR, machines_each=lambda _: 2.0, rules=MarketRules(notice_share=1.0), seed=0)
    assert [(s.at_s, s.capacity, s.noticed) for s in told] == [(0, 8, False), (HOUR, 4, True), (2 * HOUR, 8, False)]
    untold = steps(traces, seconds=3 * HOUR, machines_each=lambda _: 2.0, rules=MarketRules(notice_share=0.0), seed=0)
    assert not any(s.noticed for s in untold)


def test_a_short_trace_begins_again():
    again = steps([trace((0, 1), (5, 0), end_s=10)], seconds=30, machines_each=lambda _: 1.0, rules=MarketRules(), seed=0)
    assert [s.at_s for s in again] == [0, 5, 10, 15, 20, 25]


def test_all_on_demand_is_the_target_s_price():
    run = replay(on_demand_only, [trace((0, 0))])
    assert run.cost == pytest.approx(run.target.num_replicas * 2, rel=0.05)
    assert run.preempted == 0
    assert run.requests.books.failed == 0
    assert run.able_s == pytest.approx(run.now_s, rel=0.02)


def test_spot_is_granted_up_to_what_there_is():
    run = replay(spot_only, [trace((0, 2), zone="a"), trace((0, 1), zone="b")])
    assert max(sample.spot_ready for sample in run.samples) == 3


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_drop_takes_machines_with_or_without_notice(share):
    run = replay(spot_only, [trace((0, 9), (HOUR, 0))], market=MarketRules(notice_share=share))
    assert run.preempted >= 4
    books = run.requests.books
    assert books.failed > 0, "nobody is left to serve"
    assert (books.cut_off > 1) == (share == 0.0), "with notice those that are served finish"


def test_it_pays_from_asking_to_the_end():
    run = replay(spot_only, [trace((0, 9))], seconds=HOUR)
    spot = sum(sample.spot_ready for sample in run.samples) / len(run.samples)
    assert run.cost == pytest.approx(spot * 0.3, rel=0.5)
    assert run.cost > spot * 0.3


def test_the_same_seed_is_the_same_run():
    traces = [trace((0, 9), (HOUR, 4), (1.5 * HOUR, 8))]
    first, second = replay(spot_only, traces), replay(spot_only, traces)
    assert (first.cost, first.requests.books.failed, first.samples) == (second.cost, second.requests.books.failed, second.samples)


def test_rules_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="notice_share"):
        MarketRules(notice_share=2.0)
    with pytest.raises(ValueError, match="must not be negative"):
        MarketRules(cold_start_s=-1)
