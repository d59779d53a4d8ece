"""Where replicas run: laws that hold for every fleet and market."""

from cluster.machines import Fleet, Machine
from cluster.market import ON_DEMAND, SPOT, Market, Offer, Pool
from cluster.placement import PlacementSettings, place

A, B = Pool("a"), Pool("b")
MARKET = Market((Offer(A, SPOT, 0.3), Offer(B, SPOT, 0.3), Offer(A, ON_DEMAND, 1.0)))


def test_without_ready_spot_everything_is_asked_for_on_demand_too():
    plan = place(4, Fleet(), MARKET, PlacementSettings(), 0.0)
    assert plan.on_demand == 4
    assert set(plan.spot) == {A, B}
    assert plan.reasons


def test_on_demand_retires_when_spot_is_ready():
    machines = [Machine(f"s{i}", pool, SPOT, "ready", 0, 0.3) for i, pool in enumerate((A, A, B, B))]
    machines.append(Machine("d", A, ON_DEMAND, "ready", 0, 1.0))
    plan = place(4, Fleet(tuple(machines)), MARKET, PlacementSettings(), 10_000.0)
    assert plan.on_demand == 0
    assert plan.retire == ("d",)
