"""The replay: machines are granted within the market's limits, told, taken away and paid for."""

import numpy as np
import pytest

from cluster import placement
from cluster.autoscale import AutoscaleSettings, Target
from cluster.baselines import on_demand_only, spot_only
from cluster.demand import Replica, demand
from cluster.market import Pool
from cluster.placement import PlacementSettings, Plan, place
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
    assert (books.cut_off < 10) if share else (books.cut_off > 90), "with notice nearly all that are served finish: e^-3 do not within 30 s"


def told(lead_s, policy=None, seconds=1.5 * HOUR):
    """A zone that goes as a whole after an hour, with notice; all is served on demand once that is there."""

    def ours(target, fleet, market, now_s):
        return place(target, fleet, market, PlacementSettings(drain_lead_s=lead_s), now_s)

    rules, market = Rules(), MarketRules(notice_share=1.0)
    wanted = demand(steady_load(), Replica(), seconds=seconds, scale=10.0)
    run = Replay(policy or ours, Fluid(wanted, rules, 32), rules, market, SCALE, (Pool("z"),), PlacementSettings(drain_lead_s=lead_s))
    run.target = Target(4)
    return run.run(steps([trace((0, 9), (HOUR, 0))], seconds=seconds, machines_each=lambda _: 1.0, rules=market, seed=0), seconds)


def test_a_machine_that_was_told_serves_on_while_its_replacement_starts():
    """Drained at once, nobody serves for 183 s, and who comes first waits longer than 100 s; 30 s before the end, for 93 s."""
    at_once, late = told(120.0), told(30.0)
    assert at_once.preempted == late.preempted > 2
    assert at_once.requests.books.failed > 200
    assert late.requests.books.failed < 0.1 * at_once.requests.books.failed
    assert late.cost == pytest.approx(at_once.cost, rel=0.05)


def test_when_to_drain_is_asked_of_the_policy_that_production_asks(monkeypatch):
    asked = []
    monkeypatch.setattr(placement, "drain_at", lambda notice_s, end_s, chosen: asked.append((notice_s, end_s)) or notice_s)
    early = told(30.0)
    assert asked == [(HOUR - 120, HOUR)]
    assert early.requests.books.failed > 200


def test_a_machine_given_back_is_paid_for_until_its_requests_are_done_or_its_grace_is_over():
    """Four machines on demand, all given back at 600 s, where the clients send again who was cut off."""

    def stop(target, fleet, market, now_s):
        if now_s < 600:
            return on_demand_only(target, fleet, market, now_s)
        return Plan({}, 0, tuple(m.machine_id for m in fleet.machines if m.state != "draining"))

    def run(**rules):
        market, clients = MarketRules(**rules), Rules(migrates=False, heeds_notice=False)
        wanted = demand(steady_load(output_tokens=2000.0), Replica(), seconds=1200, scale=1.0)
        made = Replay(stop, Fluid(wanted, clients, 32), clients, market, SCALE, (Pool("z"),))
        made.target = Target(4)
        return made.run([], 1200)

    short, long = run(grace_s=30.0), run(grace_s=400.0)
    assert short.requests.books.cut_off > 10 * long.requests.books.cut_off
    assert long.cost > short.cost


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
