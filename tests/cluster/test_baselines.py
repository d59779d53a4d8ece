"""What others do, in the form in which ours decides."""

from cluster.baselines import SkyServe, even_spread, on_demand_only, spot_only
from cluster.machines import Fleet, Machine
from cluster.market import ON_DEMAND, SPOT, Market, Observations, Offer, Pool

A, B, C = Pool("a"), Pool("b"), Pool("c")
OFFERS = (*(Offer(pool, SPOT, 0.3) for pool in (A, B, C)), Offer(A, ON_DEMAND, 1.0))


def ready(pool, number, market=SPOT):
    return tuple(Machine(f"{pool}{market}{i}", pool, market, "ready", 0.0) for i in range(number))


def test_on_demand_only():
    plan = on_demand_only(5, Fleet(), Market(OFFERS), 0.0)
    assert (plan.num_spot, plan.on_demand) == (0, 5)


def test_even_spread_is_even_come_what_may():
    refused = Observations(60.0).after(60.0, held={}, refused={A: 2})
    assert even_spread(7, Fleet(), Market(OFFERS, refused), 60.0).spot == {A: 3, B: 2, C: 2}


def test_spot_only_asks_elsewhere_when_refused():
    refused = Observations(60.0).after(60.0, held={}, refused={A: 2})
    plan = spot_only(6, Fleet(), Market(OFFERS, refused), 60.0)
    assert plan.spot == {B: 3, C: 3}
    assert plan.on_demand == 0


def test_spothedge_asks_for_its_extra_and_bridges_what_is_not_ready():
    policy = SkyServe(extra=2)
    plan = policy(6, Fleet(), Market(OFFERS), 0.0)
    assert plan.num_spot == 8
    assert plan.on_demand == 6  # min(target, target + extra - ready)
    plan = policy(6, Fleet(ready(A, 3) + ready(B, 2) + ready(C, 2)), Market(OFFERS), 60.0)
    assert plan.on_demand == 1
    assert policy(6, Fleet(ready(A, 3) + ready(B, 3) + ready(C, 2)), Market(OFFERS), 120.0).on_demand == 0


def test_spothedge_moves_zones_between_its_lists():
    policy = SkyServe(extra=0)
    lost = Observations(60.0).after(60.0, held={A: 3}, lost={A: 3})
    assert set(policy(6, Fleet(ready(B, 2)), Market(OFFERS, lost), 60.0).spot) == {B, C}
    both = lost.after(120.0, held={B: 2}, lost={B: 2})
    plan = policy(6, Fleet(), Market(OFFERS, both), 120.0)
    assert set(plan.spot) == {A, B, C}, "fewer than two zones are left: all are tried again"


def test_scaling_down_gives_up_where_most_are():
    plan = SkyServe(extra=0)(3, Fleet(ready(A, 4) + ready(B, 1)), Market(OFFERS), 0.0)
    assert plan.spot[A] == 2
    assert len(plan.retire) == 2
