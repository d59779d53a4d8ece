"""Where replicas run: laws that hold for every fleet and market, and the cases that the policy was made for."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.machines import Fleet, Machine
from cluster.market import ON_DEMAND, SPOT, Market, Observations, Offer, Pool
from cluster.placement import PlacementSettings, Plan, drain_at, fill, fitted, place, warns

A, B, C = Pool("a"), Pool("b"), Pool("c", "g5")
OFFERS = (Offer(A, SPOT, 0.3), Offer(B, SPOT, 0.3), Offer(C, SPOT, 0.35), Offer(A, ON_DEMAND, 1.0))
LATER = 100_000.0


def fleet(**counts: int) -> Fleet:
    """`a=3` ready spot machines in pool a, `b_starting=2`, `on_demand=4`, …"""
    machines = []
    for name, number in counts.items():
        pool, _, state = name.partition("_") if not name.startswith("on_demand") else ("a", "", name.removeprefix("on_demand").strip("_"))
        market, price = (ON_DEMAND, 1.0) if name.startswith("on_demand") else (SPOT, 0.3)
        where = {"a": A, "b": B, "c": C}[pool]
        machines += [Machine(f"{name}{i}", where, market, state or "ready", 0.0, price) for i in range(number)]
    return Fleet(tuple(machines))


def calm(held: dict[Pool, int], since_s: float = 0.0) -> Market:
    """A market whose pools have held these machines without a loss since then."""
    return Market(OFFERS, Observations(since_s).after(since_s, held=held).after(LATER, held=held))


def test_without_ready_spot_everything_is_asked_for_on_demand_too():
    plan = place(4, Fleet(), Market(OFFERS), PlacementSettings(), 0.0)
    assert plan.on_demand == 4
    assert plan.num_spot > 0
    assert plan.reasons


def test_on_demand_retires_when_spot_serves():
    plan = place(4, fleet(a=2, b=2, on_demand=1), calm({A: 2, B: 2}), PlacementSettings(), LATER)
    assert plan.on_demand == 0
    assert plan.retire == ("on_demand0",)


def test_a_growing_target_is_asked_of_calm_pools_alone():
    plan = place(30, fleet(a=10, b=10), calm({A: 10, B: 10}), PlacementSettings(), LATER)
    assert plan.num_spot >= 30
    assert plan.on_demand == 0


def test_after_a_collapse_on_demand_comes_at_once():
    market = calm({A: 20})
    market = Market(OFFERS, market.observed.after(LATER + 1, held={A: 20}, lost={A: 20}))
    plan = place(20, Fleet(), market, PlacementSettings(), LATER + 1)
    assert plan.on_demand == 20


def test_a_young_pool_that_carries_all_is_hedged_once_something_has_been_saved():
    earned = dataclasses.replace(Observations(LATER), num_started=5000.0, spot_hours=2000.0, on_demand_hours=500.0)
    young = earned.after(LATER, held={A: 20}).after(LATER + 60, held={A: 20})
    careful = place(20, fleet(a=20), Market(OFFERS[:1] + OFFERS[3:], young), PlacementSettings(), LATER + 60)
    careless = place(20, fleet(a=20), Market(OFFERS[:1] + OFFERS[3:], young), PlacementSettings(reinvest=0.0), LATER + 60)
    assert careful.on_demand >= PlacementSettings().survival_share * 20
    assert careless.on_demand == 0


def test_two_pools_of_which_each_suffices_need_no_hedge():
    plan = place(20, fleet(a=10, b=10), Market(OFFERS, Observations().after(LATER, held={A: 10, B: 10})), PlacementSettings(), LATER)
    assert plan.on_demand == 0


def test_a_pool_that_refused_is_left_alone_for_a_while():
    market = Market(OFFERS, Observations(LATER).after(LATER, held={}, refused={A: 3}))
    assert A not in place(20, Fleet(), market, PlacementSettings(), LATER + 1).spot
    assert A in place(20, Fleet(), market, PlacementSettings(), LATER + 3600).spot


def test_the_floor_stands_and_max_spot_holds():
    plan = place(10, fleet(a=5, b=5), calm({A: 5, B: 5}), PlacementSettings(min_on_demand=3), LATER)
    assert plan.on_demand >= 3
    assert place(10, Fleet(), Market(OFFERS), PlacementSettings(max_spot=0), 0.0) == Plan(
        {}, 10, (), ("target 10: 0 spot ready, 0 coming from calm pools, 0 asked of them; 10 on demand",)
    )


def test_what_never_comes_is_given_up_and_made_up_for():
    """20 were asked of a calm pool; until two cold starts have passed they are counted on, then on demand fills the gap."""
    held = {A: 40}
    market = Market((OFFERS[0], OFFERS[3]), Observations().after(0.0, held=held).after(LATER, held=held))
    machines = [Machine(f"r{i}", A, SPOT, "ready", 0.0, 0.3) for i in range(20)]

    def after(seconds):
        late = [Machine(f"s{i}", A, SPOT, "starting", LATER - seconds, 0.3) for i in range(20)]
        return place(40, Fleet((*machines, *late)), market, PlacementSettings(), LATER)

    soon, late = after(300.0), after(400.0)
    assert (soon.on_demand, soon.retire) == (0, ())
    assert set(late.retire) == {f"s{i}" for i in range(20)}
    assert any("not coming" in reason for reason in late.reasons)
    assert late.on_demand >= 12
    refused = Market(market.offers, market.observed.after(LATER, held=held, refused={A: 20}))
    anew = [Machine(f"t{i}", A, SPOT, "starting", LATER + 60, 0.3) for i in range(20)]
    plan = place(40, Fleet((*machines, *anew)), refused, PlacementSettings(), LATER + 120)
    assert plan.num_spot == 40, "asked for anew"
    assert plan.on_demand >= 12, "and not trusted, for they were overdue before"


def test_the_on_demand_quota_holds_and_spot_takes_the_rest():
    offers = (*OFFERS[:3], Offer(A, ON_DEMAND, 1.0, max_replicas=3), Offer(B, ON_DEMAND, 1.1, max_replicas=2))
    plan = place(20, Fleet(), Market(offers), PlacementSettings(min_on_demand=8), 0.0)
    assert plan.on_demand == 5
    assert plan.num_spot == 15
    assert any("quota" in reason for reason in plan.reasons)


def test_where_nothing_is_to_be_had_on_demand_spot_carries_all():
    plan = place(10, Fleet(), Market(OFFERS[:3]), PlacementSettings(min_on_demand=3), 0.0)
    assert (plan.num_spot, plan.on_demand) == (10, 0)


def test_what_calm_pools_may_not_hold_is_asked_of_others():
    offers = (dataclasses.replace(OFFERS[0], max_replicas=8), OFFERS[1], OFFERS[3])
    market = Market(offers, Observations().after(0.0, held={A: 4}).after(LATER, held={A: 4}))
    assert place(20, fleet(a=4), market, PlacementSettings(), LATER).spot == {A: 8, B: 12}


def test_a_small_loss_does_not_buy_headroom_on_demand_a_shortage_does():
    def after(lost):
        market = calm({A: 20})
        seen = market.observed.after(LATER + 1, held={A: 20}, lost={A: lost}).after(LATER + 1, held={}, refused={A: 1})
        return place(20, fleet(a=20 - lost), Market((OFFERS[0], OFFERS[3]), seen), PlacementSettings(on_demand_share=0.9), LATER + 1)

    assert after(4).on_demand == 2  # of 20, 18 are stood in for
    assert after(12).on_demand == 12


def test_a_machine_that_was_told_serves_until_shortly_before_its_end():
    chosen = PlacementSettings(cold_start_s=183.0, patience_s=100.0, drain_lead_s=30.0)
    assert drain_at(1000.0, 1120.0, chosen) == 1090.0
    assert drain_at(1000.0, 1030.0, chosen) == 1000.0, "no more than the lead is left"
    assert drain_at(1000.0, float("inf"), chosen) == 1000.0, "nobody knows when"
    assert drain_at(1000.0, 1120.0, dataclasses.replace(chosen, drain_lead_s=120.0)) == 1000.0
    assert warns(120.0, chosen)
    assert not warns(120.0, dataclasses.replace(chosen, drain_lead_s=120.0))
    assert not warns(100.0, chosen)


def test_settings_take_what_others_have_settled():
    made = fitted(PlacementSettings(min_on_demand=2), utilization=0.7, cold_start_s=60.0)
    assert (made.min_on_demand, made.utilization, made.cold_start_s, made.patience_s) == (2, 0.7, 60.0, PlacementSettings().patience_s)


def test_nobody_asks_nothing_runs():
    plan = place(0, fleet(a=2, on_demand=1), calm({A: 2}), PlacementSettings(), LATER)
    assert (plan.num_spot, plan.on_demand) == (0, 0)
    assert set(plan.retire) == {"a0", "a1", "on_demand0"}


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="on_demand_share"):
        PlacementSettings(on_demand_share=0.0)
    with pytest.raises(ValueError, match="must not be negative"):
        PlacementSettings(min_on_demand=-1)


machines = st.lists(
    st.builds(
        lambda pool, market, state, since: (pool, market, state, since),
        st.sampled_from((A, B, C)),
        st.sampled_from((SPOT, ON_DEMAND)),
        st.sampled_from(("starting", "ready", "draining")),
        st.floats(0, LATER),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(
    target=st.integers(0, 40),
    made=machines,
    floor=st.integers(0, 5),
    lost=st.dictionaries(st.sampled_from((A, B, C)), st.integers(0, 9), max_size=3),
    refused=st.dictionaries(st.sampled_from((A, B, C)), st.integers(1, 9), max_size=3),
)
def test_laws(target, made, floor, lost, refused):
    """It never takes away what serves while it is needed, keeps its floor, retires only what it has, and repeats itself."""
    now = Fleet(tuple(Machine(f"m{i}", *parts, 1.0 if parts[1] == ON_DEMAND else 0.3) for i, parts in enumerate(made)))
    held = now.by_pool(SPOT)
    seen = (
        Observations().after(LATER - 500, held=held).after(LATER, held={p: held.get(p, 0) + lost.get(p, 0) for p in (A, B, C)}, lost=lost)
    )
    market = Market(OFFERS, seen.after(LATER, held=held, refused=refused))
    chosen = PlacementSettings(min_on_demand=floor)
    plan = place(target, now, market, chosen, LATER)
    assert plan == place(target, now, market, chosen, LATER)
    assert plan.on_demand >= floor
    by_id = {machine.machine_id: machine for machine in now.machines}
    assert len(set(plan.retire)) == len(plan.retire)
    assert all(by_id[name].state != "draining" for name in plan.retire)
    ready = [m for m in now.machines if m.state == "ready"]
    left = sum(m.machine_id not in plan.retire for m in ready)
    assert left >= min(len(ready), int(target * chosen.on_demand_share))
    assert all(number >= 0 for number in plan.spot.values())


def settle(target, offers, capacity, now=(), *, rounds=60, chosen=None):
    """The fleets of so many looks, 120 s apart, on a market that gives up to its capacity and takes nothing away."""
    number, seen, at_s, fleets = 0, Observations(), 0.0, []
    now = Fleet(tuple(now))
    refused = {}
    for _ in range(rounds):
        seen = seen.after(at_s, held=now.by_pool(SPOT), refused=refused, on_demand=now.count(ON_DEMAND))
        plan = place(target, now, Market(offers, seen), chosen or PlacementSettings(), at_s)
        kept = [dataclasses.replace(m, state="ready") for m in now.machines if m.machine_id not in plan.retire]
        refused = {}
        for pool, count in plan.spot.items():
            there = sum(m.pool == pool and m.market == SPOT for m in kept)
            given_ = min(count, max(there, capacity[pool])) - there
            kept += [Machine(f"m{(number := number + 1)}", pool, SPOT, "starting", at_s, 0.3) for _ in range(given_)]
            if given_ < count - there:
                refused[pool] = count - there - given_
        for _ in range(plan.on_demand - sum(m.market == ON_DEMAND for m in kept)):
            kept.append(Machine(f"m{(number := number + 1)}", A, ON_DEMAND, "starting", at_s, 1.0))
        now, at_s = Fleet(tuple(kept)), at_s + 120.0
        fleets.append({m.machine_id for m in now.machines})
    return now, fleets


@given(target=st.integers(1, 60), pools=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_a_market_that_gives_everything_comes_to_rest(target, pools):
    """When all is granted and nothing is lost, spot carries the target, and the plan stops changing."""
    now, fleets = settle(target, (*OFFERS[:pools], OFFERS[3]), dict.fromkeys((A, B, C), 1000), rounds=400)
    assert now.count(SPOT) + now.count(ON_DEMAND) >= target
    assert now.count(ON_DEMAND) == 0
    assert now.count(SPOT) <= target + 2
    assert fleets[-1] == fleets[-20]


@given(
    target=st.integers(0, 40),
    capacity=st.fixed_dictionaries(dict.fromkeys((A, B, C), st.integers(0, 40))),
    held=st.fixed_dictionaries(dict.fromkeys((A, B, C), st.integers(0, 20))),
    quota=st.one_of(st.none(), st.integers(0, 20)),
)
@settings(max_examples=60, deadline=None)
def test_constant_inputs_reach_a_fixed_point(target, capacity, held, quota):
    """Whatever is held at the start, in calm pools or not, and whatever the market refuses: after a while no machine comes or goes."""
    now = [Machine(f"{pool}{i}", pool, SPOT, "ready", 0.0, 0.3) for pool, number in held.items() for i in range(number)]
    offers = tuple(dataclasses.replace(offer, max_replicas=quota) if offer.market == SPOT else offer for offer in OFFERS)
    held_up_to = {pool: max(number, held[pool]) for pool, number in capacity.items()}
    final, fleets = settle(target, offers, held_up_to, now, chosen=PlacementSettings(reinvest=0.0))
    assert all(fleet == fleets[-1] for fleet in fleets[-20:])
    assert final.count(SPOT) + final.count(ON_DEMAND) >= int(target * PlacementSettings().on_demand_share)


def test_more_pools_than_machines_come_to_rest():
    """A probe that serves makes one machine too many; it must not be the probe that goes, to be asked for again."""
    many = [Pool(f"p{i:02}") for i in range(14)]
    offers = (*(Offer(pool, SPOT, 0.3) for pool in many), OFFERS[3])
    final, fleets = settle(12, offers, dict.fromkeys(many, 100), chosen=PlacementSettings(reinvest=0.0))
    assert all(fleet == fleets[-1] for fleet in fleets[-20:])
    assert final.count(SPOT) == 12


def test_a_young_pool_that_holds_most_is_levelled_once():
    """Two calm pools beside a young one: the level is that of all three, or the surplus goes, is asked for again, and so on."""
    held = {A: 5, B: 2, C: 12}
    now = [Machine(f"{pool}{i}", pool, SPOT, "ready", 0.0, 0.3) for pool, number in held.items() for i in range(number)]
    seen = Observations().after(0.0, held={A: 5, B: 2}).after(LATER, held={A: 5, B: 2}).after(LATER + 1, held=held)
    plan = place(19, Fleet(tuple(now)), Market(OFFERS, seen), PlacementSettings(), LATER + 1)
    assert plan.spot == {A: 6, B: 6, C: 12}


@given(
    plan=st.dictionaries(st.sampled_from((A, B, C)), st.integers(0, 20)),
    count=st.integers(0, 60),
    limits=st.fixed_dictionaries({A: st.integers(0, 30), B: st.integers(0, 30), C: st.integers(0, 30)}),
)
def test_filling_adds_exactly_what_there_is_room_for(plan, count, limits):
    before = dict(plan)
    fill(plan, [A, B, C], count, limits.__getitem__)
    room = sum(max(0, limits[pool] - before.get(pool, 0)) for pool in (A, B, C))
    assert sum(plan.values()) - sum(before.values()) == min(count, room)
    assert all(plan[pool] >= number for pool, number in before.items())
