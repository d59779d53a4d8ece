"""Ray's nodes and the replicas' reports in the policies' terms."""

from dataclasses import replace
from typing import Any

from cluster.census import Census, Node
from cluster.machines import NodeType
from cluster.market import ON_DEMAND, SPOT, Observations, Pool
from serve.scaling.ground import LOCAL, Ground

TYPES = (
    NodeType("fixed", "m", ON_DEMAND, {"CPU": 8.0}, 0, 2),
    NodeType("spot_m", "m", SPOT, {"CPU": 16.0}, 0, 3),
    NodeType("tiny", "t", SPOT, {"CPU": 4.0}, 0, 3),
)
GROUND = Ground(TYPES, "z", cpus=8.0, prices={"spot_m": 0.4})


def node(name: str, kind: str, cpus: float, market: str = "", *, free: float = 0.0, draining: bool = False) -> Node:
    return Node(name, kind, {"ray.io/market-type": market} if market else {}, {"CPU": cpus}, {"CPU": free}, draining)


def replica(where: str, deployment: str = "spot", leaving: bool = False) -> dict[str, Any]:
    return {"node_id": where, "deployment": deployment, "leaving": leaving}


def seen(census: Census, replicas: dict[str, dict[str, Any]], ground: Ground = GROUND, **wanted: int) -> list[tuple[str, Pool, str, str]]:
    markets = {SPOT: wanted.get("spot", 0), ON_DEMAND: wanted.get("on_demand", 0)}
    return [(m.machine_id, m.pool, m.market, m.state) for m in ground.fleet(census, replicas, markets, 0.0).machines]


def test_offers_are_the_types_that_hold_a_replica_at_a_replicas_share_of_the_price() -> None:
    offers = {(o.pool.instance_type, o.market): (o.price_per_hour, o.max_replicas) for o in GROUND.market(Observations()).offers}
    assert offers == {("fixed", ON_DEMAND): (8 * 0.05, 2), ("spot_m", SPOT): (0.2, 6)}
    assert {o.pool for o in Ground().market(Observations()).offers} == {LOCAL}


def test_replicas_are_ready_until_their_node_or_they_themselves_are_to_go() -> None:
    census = Census((node("a", "spot_m", 16, "spot"), node("b", "spot_m", 16, "spot", draining=True)))
    found = seen(census, {"1": replica("a"), "2": replica("a", leaving=True), "3": replica("b"), "4": replica("dead")}, spot=1)
    pool = Pool("z", "spot_m")
    assert found == [("a/0", pool, SPOT, "ready"), ("a/1", pool, SPOT, "draining"), ("b/0", pool, SPOT, "draining")]


def test_replicas_still_awaited_have_places_on_living_nodes_then_on_launching_ones_and_else_none() -> None:
    census = Census((node("a", "spot_m", 16, "spot"), node("f", "fixed", 8, "on-demand")), {"spot_m": 1})
    found = seen(census, {"1": replica("a")}, spot=3, on_demand=0)
    assert [(name, state) for name, _, _, state in found] == [("a/0", "ready"), ("a/1", "starting"), ("launching spot_m/0", "starting")]
    assert len(seen(census, {"1": replica("a")}, spot=9)) == 4, "four places is all there is"
    assert [name for name, *_ in seen(census, {}, on_demand=1)] == ["f/0"]


def test_a_machine_with_notice_holds_replicas_that_serve_counts_and_is_no_place_for_others() -> None:
    leaving = replace(node("a", "spot_m", 16, "spot", free=8), gone_s=99.0)
    census = Census((leaving, node("b", "spot_m", 16, "spot", free=8), replace(leaving, node_id="c", draining=True)))
    reports = {"1": replica("a"), "2": replica("b"), "3": replica("a", leaving=True), "4": replica("c", leaving=True)}
    assert GROUND.noticed(census, reports) == {SPOT: 1}
    assert GROUND.places(census) == {(SPOT, Pool("z", "spot_m")): 2}, "Ray knows of the drain"
    pool = Pool("z", "spot_m")
    told = [("a/0", "draining"), ("b/0", "ready"), ("a/1", "draining"), ("c/0", "draining")]
    found = seen(census, reports, spot=2)
    assert [(name, state) for name, _, _, state in found] == told, "two are told to run, and two do"
    assert seen(census, reports, spot=3) == [*found, ("b/1", pool, SPOT, "starting")]
    assert seen(census, reports, spot=9) == [*found, ("b/1", pool, SPOT, "starting")], "there is no other place"


def test_a_place_that_somebody_else_works_in_is_not_waited_for() -> None:
    census = Census((node("a", "spot_m", 16, "spot", free=0),))
    others = GROUND.others(census, {"1": replica("a")}, {}, settled=True)
    assert others == {"a": 1}
    assert GROUND.others(census, {"1": replica("a")}, {}, settled=False) == {}, "it may be a replica that is being loaded"
    assert GROUND.others(census, {"1": replica("a")}, others, settled=False) == {"a": 1}, "but not if it was there before"
    assert GROUND.others(Census((node("a", "spot_m", 16, "spot", free=8),)), {"1": replica("a")}, others, settled=False) == {}
    places = [m.machine_id for m in GROUND.fleet(census, {"1": replica("a")}, {SPOT: 2}, 0.0, others=others).machines]
    assert places == ["a/0"]


def test_pools_are_of_their_own_zones_where_types_have_one() -> None:
    market = replace(GROUND, zones={"spot_m": "z2"}).market(Observations())
    assert {offer.pool for offer in market.offers} == {Pool("z", "fixed"), Pool("z2", "spot_m")}


def test_a_node_without_a_label_is_of_either_market() -> None:
    census = Census((node("laptop", "", 4),))
    found = seen(census, {"1": replica("laptop", "on_demand")}, Ground(), spot=1, on_demand=1)
    assert found == [("laptop/0", LOCAL, ON_DEMAND, "ready"), ("laptop/1", LOCAL, SPOT, "starting")]


def test_only_a_node_that_was_started_for_replicas_and_runs_nothing_else_may_be_given_back() -> None:
    assert GROUND.belongs(node("a", "spot_m", 16, free=8), 1)
    assert not GROUND.belongs(node("a", "spot_m", 16, free=0), 1), "somebody else works there"
    assert not GROUND.belongs(node("laptop", "", 8, free=0), 1), "nobody would start it again"
    assert (GROUND.node_of("a/1"), GROUND.node_of("launching spot_m/0")) == ("a", "")
