"""One decision after another: what is learnt between them, and that it is the simulator's policies that decide."""

from dataclasses import replace
from typing import Any

import pytest

from cluster import autoscale, placement
from cluster.autoscale import AutoscaleSettings, Load, Target
from cluster.census import Census, Node, Refusal
from cluster.machines import Fleet, NodeType
from cluster.market import ON_DEMAND, SPOT, Market, Pool
from cluster.placement import PlacementSettings, Plan
from serve.scaling.ground import LOCAL, Ground
from serve.scaling.steward import UNANSWERED_S, Sight, Steward

TYPES = (
    NodeType("fixed", "m", ON_DEMAND, {"CPU": 8.0}, 0, 4),
    NodeType("spot_m", "m", SPOT, {"CPU": 8.0}, 0, 4),
    NodeType("spot_c", "c", SPOT, {"CPU": 8.0}, 0, 4),
)
SPOT_M = Pool("z", "spot_m")


def steward(**scale: Any) -> Steward:
    settings = AutoscaleSettings(
        **{"replica_tokens_per_s": 100.0, "utilization": 1.0, "max_replicas": 8, "scale_down_after_s": 0.0, **scale}
    )
    return Steward(Ground(TYPES, "z", cpus=8.0), settings, PlacementSettings(), Target(0))


def node(name: str, kind: str, *, draining: bool = False, free: float = 0.0) -> Node:
    market = "spot" if kind.startswith("spot") else "on-demand"
    return Node(name, kind, {"ray.io/market-type": market}, {"CPU": 8.0}, {"CPU": free}, draining)


def sight(now_s: float, tokens_per_s: float, *nodes: Node, **more: Any) -> Sight:
    replicas = {n.node_id: {"node_id": n.node_id, "deployment": "spot", "leaving": False} for n in nodes}
    wanted = more.pop("wanted", {SPOT: len(nodes), ON_DEMAND: 0})
    return Sight(now_s, Load(tokens_per_s), Census(nodes, **more), replicas, wanted)


def test_both_policies_are_looked_up_when_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoscale, "target_replicas", lambda load, before, settings, now_s: Target(7, "because"))
    monkeypatch.setattr(placement, "place", lambda target, *_: Plan({SPOT_M: target}, 2, reasons=("so be it",)))
    decision = steward().decide(sight(0.0, 0.0))
    assert decision.replicas == {SPOT: 7, ON_DEMAND: 2}
    assert decision.reasons == ("because", "so be it")
    assert [(dict(b.labels), b.count) for b in decision.bundles] == [
        ({"sterna.io/pool": "spot_m"}, 7),
        ({"ray.io/market-type": "on-demand", "sterna.io/role": "worker"}, 2),
    ]
    assert all(dict(bundle.resources) == {"CPU": 8.0} for bundle in decision.bundles)


def test_load_brings_replicas_and_their_end_takes_all_away() -> None:
    mine = steward()
    busy = mine.decide(sight(0.0, 250.0))
    assert sum(busy.replicas.values()) >= 3
    idle = mine.decide(sight(1.0, 0.0))
    assert idle.replicas == {SPOT: 0, ON_DEMAND: 0}
    assert not idle.bundles
    assert idle.differs(busy)
    assert not mine.decide(sight(2.0, 0.0)).differs(idle)


def test_streams_that_wait_for_the_first_replica_keep_one_wanted() -> None:
    mine = steward()
    for now_s in range(0, 1000, 50):
        waiting = replace(sight(float(now_s), 0.0), load=Load(0.0, queued=1, queued_tokens=10))
        assert sum(mine.decide(waiting).replicas.values()) >= 1


def test_a_machine_that_goes_unasked_was_taken_by_the_market_and_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = steward()
    monkeypatch.setattr(placement, "place", lambda *_: Plan({SPOT_M: 2}, 0))
    mine.decide(sight(0.0, 200.0, node("a", "spot_m"), node("b", "spot_m")))
    mine.decide(sight(3600.0, 200.0, node("a", "spot_m", draining=True), node("b", "spot_m")))
    mine.decide(sight(3601.0, 200.0, node("b", "spot_m")))
    record = mine.observed.of(SPOT_M)
    assert record.last_lost_s == 3600.0
    assert record.machine_hours == pytest.approx(2.0, abs=0.01)
    mine.decide(sight(3602.0, 200.0))
    assert mine.observed.of(SPOT_M).last_lost_s == 3602.0, "the other one went without a word"


def test_a_machine_that_was_given_back_was_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = steward()
    nodes = (node("a", "spot_m"), node("b", "spot_m"))
    monkeypatch.setattr(placement, "place", lambda *_: Plan({SPOT_M: 1}, 0, retire=("a/0",)))
    assert mine.decide(sight(0.0, 100.0, *nodes)).give_back == ("a",)
    mine.decide(sight(1.0, 100.0, node("a", "spot_m", draining=True), nodes[1]))
    mine.decide(sight(2.0, 100.0, nodes[1]))
    assert mine.observed.of(SPOT_M).last_lost_s is None


def test_a_node_is_given_back_only_whole_and_only_if_it_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = steward()
    monkeypatch.setattr(placement, "place", lambda *_: Plan({}, 0, retire=("busy/0", "laptop/0", "two/0", "one/0", "launching spot_m/0")))
    nodes = (
        replace(node("busy", "spot_m"), resources={"CPU": 16.0}),
        node("laptop", ""),
        replace(node("two", "spot_m"), resources={"CPU": 16.0}),
        node("one", "spot_c"),
    )
    seen = sight(0.0, 0.0, *nodes)
    seen = replace(seen, replicas={**seen.replicas, "second": {"node_id": "two", "deployment": "spot", "leaving": False}})
    assert mine.decide(seen).give_back == ("one",)


def test_launches_that_failed_are_refusals_once_and_old_ones_are_none() -> None:
    mine = steward()
    old = Refusal("spot_m", 1, 90.0)
    mine.decide(sight(100.0, 400.0, refusals=(old,)))
    mine.decide(sight(101.0, 400.0, refusals=(old, Refusal("spot_m", 2, 100.5))))
    assert mine.observed.of(SPOT_M).last_refused_s == 101.0
    mine.decide(sight(102.0, 400.0, refusals=(old, Refusal("spot_m", 2, 100.5))))
    assert mine.observed.of(SPOT_M).last_refused_s == 101.0


def test_what_nobody_begins_for_a_minute_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = steward()
    monkeypatch.setattr(placement, "place", lambda *_: Plan({SPOT_M: 2}, 0))
    for now_s in (0.0, 1.0, UNANSWERED_S):
        mine.decide(sight(now_s, 200.0))
        assert mine.observed.of(SPOT_M).last_refused_s is None
    mine.decide(sight(UNANSWERED_S + 2, 200.0))
    assert mine.observed.of(SPOT_M).last_refused_s == UNANSWERED_S + 2
    mine.decide(sight(UNANSWERED_S + 3, 200.0))
    assert mine.observed.of(SPOT_M).last_refused_s == UNANSWERED_S + 2, "it is given another minute"


def test_without_node_types_a_machine_has_a_cold_start_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = steward()
    mine.ground = Ground(cpus=8.0)
    monkeypatch.setattr(placement, "place", lambda *_: Plan({LOCAL: 2}, 0))
    cold_start_s = mine.placement.cold_start_s
    for now_s in (-1.0, 0.0, UNANSWERED_S + 2, cold_start_s):
        mine.decide(sight(now_s, 200.0, launching={"workers": 2}))
        assert mine.observed.of(LOCAL).last_refused_s is None
    mine.decide(sight(cold_start_s + 1, 200.0, launching={"workers": 2}))
    assert mine.observed.of(LOCAL).last_refused_s == cold_start_s + 1


def test_a_machine_with_notice_is_replaced_at_once_and_serves_until_it_is_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = steward()
    monkeypatch.setattr(placement, "place", lambda *_: Plan({SPOT_M: 2}, 0))
    here, there = node("a", "spot_m"), node("b", "spot_m")
    before = mine.decide(sight(0.0, 200.0, here, there))
    noticed = mine.decide(sight(1.0, 200.0, replace(here, gone_s=121.0), there))
    assert noticed.replicas == {SPOT: 3, ON_DEMAND: 0}, "Serve starts another, and stops none"
    assert [bundle.count for bundle in noticed.bundles] == [bundle.count + 1 for bundle in before.bundles], "Ray counts that machine, too"
    assert mine.observed.of(SPOT_M).last_lost_s == 1.0, "the market takes it"
    assert noticed.fleet.by_pool(SPOT, "ready") == {SPOT_M: 1}
    assert noticed.fleet.by_pool(SPOT, "draining") == {SPOT_M: 1}
    assert "1 more, whose machines have been given notice" in noticed.reasons[-1]
    third = node("c", "spot_m")
    drained = mine.decide(sight(91.0, 200.0, replace(here, gone_s=121.0, draining=True), there, third, wanted={SPOT: 3}))
    assert drained.replicas == {SPOT: 2, ON_DEMAND: 0}
    assert mine.observed.of(SPOT_M).last_lost_s == 1.0, "once"


@pytest.mark.parametrize(("notice_s", "counted"), [(120.0, 0.0), (30.0, 1.0)])
def test_a_collapse_that_was_foretold_in_time_is_none_to_be_feared(
    notice_s: float, counted: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = steward()
    monkeypatch.setattr(placement, "place", lambda *_: Plan({SPOT_M: 1}, 0))
    mine.decide(sight(0.0, 100.0, node("a", "spot_m")))
    mine.decide(sight(10.0, 100.0, replace(node("a", "spot_m"), gone_s=10.0 + notice_s)))
    assert sum(mine.observed.of(SPOT_M).collapses) == counted


def test_a_drain_that_did_not_happen_is_no_machine_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = steward()
    nodes = (node("a", "spot_m"), node("b", "spot_m"))
    monkeypatch.setattr(placement, "place", lambda *_: Plan({SPOT_M: 1}, 0, retire=("a/0",)))
    mine.decide(sight(0.0, 100.0, *nodes))
    monkeypatch.setattr(placement, "place", lambda *_: Plan({SPOT_M: 2}, 0))
    mine.decide(sight(1.0, 200.0, *nodes))
    mine.decide(sight(2.0, 200.0, nodes[1]))
    assert mine.observed.of(SPOT_M).last_lost_s == 2.0, "Ray had refused, and then the market took it"
    assert not mine._given_back


def test_a_launch_that_succeeds_makes_the_others_of_its_type_no_older(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, cold_start_s = steward(), PlacementSettings().cold_start_s
    monkeypatch.setattr(placement, "place", lambda *_: Plan({SPOT_M: 4}, 0))
    for now_s, launching in ((0.0, 1), (cold_start_s, 2), (cold_start_s + 1, 1), (3 * cold_start_s, 1)):
        mine.decide(sight(now_s, 400.0, launching={"spot_m": launching}, wanted={SPOT: 4}))
        late = mine.observed.of(SPOT_M).last_refused_s == now_s
        assert late == (now_s > 2 * cold_start_s + 1), "another is being started since"
    assert mine._since == {"launching spot_m/0": cold_start_s + 1}


def test_the_policies_are_shown_since_when_a_machine_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Fleet] = []

    def place(target: int, fleet: Fleet, market: Market, *_: object) -> Plan:
        shown.append(fleet)
        return Plan({SPOT_M: 1}, 0)

    mine = steward()
    monkeypatch.setattr(placement, "place", place)
    for now_s in (5.0, 9.0):
        mine.decide(sight(now_s, 100.0, node("a", "spot_m")))
    assert [machine.since_s for fleet in shown for machine in fleet.machines] == [5.0, 5.0]


def test_a_decision_reads_as_plain_data() -> None:
    note = steward().decide(sight(12.34, 250.0, node("a", "spot_m"))).note()
    assert note["decided_s"] == 12.3
    assert note["machines"] == {"spot ready": 1}
    assert set(note["replicas"]) == {SPOT, ON_DEMAND}
