"""One policy, one recorded market, one load: machines asked for, granted, refused, warned and taken away, and what it cost.

Promise: the policies that run production decide here too (`cluster.autoscale.target_replicas`, `cluster.placement.place`, looked up
when they are called), and see only what a service can see: answers to their own requests for machines, notices and deaths, never the trace.
Price: a heap of events; between them the requests flow (cluster/requests.py).
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from cluster import autoscale, placement
from cluster.autoscale import AutoscaleSettings, Target
from cluster.demand import BIN_S
from cluster.machines import Fleet, Machine, State
from cluster.market import ON_DEMAND, SPOT, Market, MarketKind, Observations, Offer, Pool
from cluster.placement import PlacementSettings, Plan
from cluster.requests import Requests, Rules
from cluster.settings import settings
from cluster.traces import SpotTrace

__all__ = ["MarketRules", "Policy", "Replay", "Sample", "Step", "steps"]

Policy = Callable[[int, Fleet, Market, float], Plan]
"""(target, fleet, market, now_s) -> plan."""


@settings
class MarketRules:
    """How machines come and go."""

    on_demand_price: float = 1.0
    """Price of an on-demand machine per hour; every cost is relative to it."""
    spot_price: float = 0.3
    """Price of a spot machine per hour."""
    cold_start_s: float = 183.0
    """From asking for a machine until its replica serves; paid for."""
    notice_s: float = 120.0
    """How long before its death a machine is told, if it is told."""
    notice_share: float = 0.5
    """Share of the preemptions that come with notice; the others come without. Told or not, all machines of an event alike."""
    retire_s: float = 30.0
    """How long a machine given back by our own will is still paid for, at least: what it serves goes elsewhere or is finished meanwhile."""
    grace_s: float = 120.0
    """And at most, while it still has requests; those that are left then are cut off."""
    answer_s: float = 10.0
    """How long it takes to learn that a pool has no machine."""
    decide_s: float = 60.0
    """Seconds between two decisions; there is one at each notice and each death, too."""

    def __post_init__(self) -> None:
        if not 0 <= self.notice_share <= 1:
            raise ValueError(f"notice_share: is {self.notice_share}; must lie between 0 and 1")
        if not self.on_demand_price > 0 or not self.spot_price >= 0:
            raise ValueError("on_demand_price must be above 0, and spot_price not negative")
        if min(self.cold_start_s, self.notice_s, self.retire_s, self.grace_s) < 0 or not self.decide_s >= 1:
            raise ValueError("cold_start_s, notice_s, retire_s and grace_s must not be negative, decide_s not below 1")


@dataclass(frozen=True, slots=True)
class Step:
    """From `at_s` on a pool holds at most `capacity` spot machines; if that is a drop, whether it was announced."""

    at_s: float
    pool: Pool
    capacity: int
    noticed: bool


def steps(
    traces: Sequence[SpotTrace], *, seconds: float, machines_each: Callable[[SpotTrace], float], rules: MarketRules, seed: int
) -> list[Step]:
    """Every change of capacity, in order; `machines_each` says how many machines one in the trace stands for."""
    found = []
    for number, trace in enumerate(traces):
        scale, chance, before = machines_each(trace), random.Random(f"{seed} {number}"), -1
        for begin_s in (round_ * trace.end_s for round_ in range(int(seconds // trace.end_s) + 1)):
            for at_s, count in zip(trace.times_s.tolist(), trace.counts.tolist(), strict=True):
                capacity, noticed = int(count * scale + 1e-9), chance.random() < rules.notice_share
                if begin_s + at_s < seconds and capacity != before:
                    found.append(Step(begin_s + at_s, Pool(trace.zone), capacity, noticed and capacity < before))
                    before = capacity
    return sorted(found, key=lambda step: step.at_s)


@dataclass(frozen=True, slots=True)
class Sample:
    """The fleet at a moment."""

    at_s: float
    target: int
    spot_ready: int
    on_demand_ready: int
    machines: int


@dataclass(slots=True)
class _Rented:
    machine: Machine
    dies_s: float | None = None
    """When it will be taken, once that has been announced."""


_CHANGE, _NOTICE, _DRAIN, _READY, _GONE, _REFUSED, _LOOK = range(7)  # in which order things of the same moment happen


@dataclass(slots=True)
class Replay:
    """The state of one run."""

    policy: Policy
    requests: Requests
    rules: Rules
    market_rules: MarketRules
    autoscale: AutoscaleSettings
    pools: tuple[Pool, ...]
    placement: PlacementSettings = field(default_factory=PlacementSettings)
    seed: int = 0
    target: Target = field(default_factory=lambda: Target(0))
    now_s: float = 0.0
    cost: float = 0.0
    preempted: int = 0
    able_s: float = 0.0
    """Seconds in which the ready replicas could carry the load."""
    samples: list[Sample] = field(default_factory=list)
    _events: list[tuple[float, int, int, Callable[[], None]]] = field(default_factory=list)
    _rented: dict[str, _Rented] = field(default_factory=dict)
    _offers: tuple[Offer, ...] = ()
    _capacity: dict[Pool, int] = field(default_factory=dict)
    _observed: Observations = field(default_factory=Observations)
    _lost: dict[Pool, int] = field(default_factory=dict)
    _warned: dict[Pool, int] = field(default_factory=dict)
    _refused: dict[Pool, int] = field(default_factory=dict)
    _closed: set[Pool] = field(default_factory=set)
    _count: int = 0
    _chance: random.Random = field(default_factory=random.Random)
    _fleet: Fleet | None = None

    def run(self, changes: Iterable[Step], seconds: float, note: Callable[[float], None] = lambda _: None) -> Replay:
        """Replay until `seconds`; `note` is told the time now and then. Every run begins with a service that runs, on demand."""
        self._chance.seed(self.seed)
        for step in changes:
            if step.noticed:
                self._at(max(0.0, step.at_s - self.market_rules.notice_s), _NOTICE, partial(self._notice, step))
            self._at(step.at_s, _CHANGE, partial(self._change, step))
        for number in range(int(seconds / self.market_rules.decide_s) + 1):
            self._at(number * self.market_rules.decide_s, _LOOK, self._look)
        for _ in range(self.target.num_replicas):
            self._rent(self.pools[0], ON_DEMAND, self.market_rules.on_demand_price)
        for machine_id in self._rented:
            self._ready(machine_id)
        while self._events and self._events[0][0] < seconds:
            at_s, rank, _, action = heapq.heappop(self._events)
            self._pass(at_s)
            action()
            if rank == _LOOK and not len(self.samples) % 128:
                note(at_s)
        self._pass(seconds)
        for machine_id in list(self._rented):
            self._pay(machine_id)
        return self

    def _at(self, at_s: float, rank: int, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (at_s, rank, self._count, action))

    def _pass(self, to_s: float) -> None:
        if to_s > self.now_s:
            self.requests.advance(to_s)
            self.now_s = to_s

    # What the market does.

    def _change(self, step: Step) -> None:
        """A pool's capacity changes: machines whose time has come go, and more if it is still too full."""
        self._capacity[step.pool] = step.capacity
        doomed = [r for r in self._in(step.pool) if r.dies_s is not None and r.dies_s <= self.now_s + 1e-6]
        others = [r for r in self._in(step.pool) if r.dies_s is None or r.dies_s > self.now_s + 1e-6]
        doomed += self._chance.sample(others, max(0, len(others) - step.capacity))
        if not doomed:
            return
        machine_ids, states = [rented.machine.machine_id for rented in doomed], [rented.machine.state for rented in doomed]
        self.preempted += len(machine_ids)
        self.requests.lose(machine_ids)
        for machine_id in machine_ids:
            self._pay(machine_id)
        if missed := sum(state != "draining" for state in states):
            self._lost[step.pool] = self._lost.get(step.pool, 0) + missed
        self._decide()

    def _notice(self, step: Step) -> None:
        """Those that will not fit are told when they die: from now on nobody counts on them, though they serve until they are drained."""
        here = [rented for rented in self._in(step.pool) if rented.dies_s is None]
        told = self._chance.sample(here, max(0, len(here) - step.capacity))
        for rented in told:
            rented.dies_s = step.at_s
            if self.rules.heeds_notice:
                self._become(rented, "draining")
        if told and self.rules.heeds_notice:
            drain_s = placement.drain_at(self.now_s, step.at_s, self.placement)
            self._at(drain_s, _DRAIN, partial(self._drain, [rented.machine.machine_id for rented in told]))
            self._lost[step.pool] = self._lost.get(step.pool, 0) + len(told)
            if placement.warns(step.at_s - self.now_s, self.placement):
                self._warned[step.pool] = self._warned.get(step.pool, 0) + len(told)
            self._decide()

    def _drain(self, machine_ids: list[str]) -> None:
        self.requests.leave([machine_id for machine_id in machine_ids if machine_id in self._rented])

    def _in(self, pool: Pool) -> list[_Rented]:
        return [r for r in self._rented.values() if r.machine.pool == pool and r.machine.market == SPOT]

    # What becomes of a machine.

    def _rent(self, pool: Pool, market: MarketKind, price: float) -> None:
        self._count += 1
        machine = Machine(f"m{self._count}", pool, market, "starting", self.now_s, price)
        self._rented[machine.machine_id] = _Rented(machine)
        self._at(self.now_s + self.market_rules.cold_start_s, _READY, partial(self._ready, machine.machine_id))
        self._fleet = None

    def _ready(self, machine_id: str) -> None:
        rented = self._rented.get(machine_id)
        if rented is not None and rented.machine.state == "starting":
            self._become(rented, "ready")
            self.requests.add(machine_id)

    def _become(self, rented: _Rented, state: State) -> None:
        was = rented.machine
        rented.machine = Machine(was.machine_id, was.pool, was.market, state, was.since_s, was.price_per_hour)
        self._fleet = None

    def _pay(self, machine_id: str) -> None:
        machine = self._rented.pop(machine_id).machine
        self.cost += (self.now_s - machine.since_s) / 3600 * machine.price_per_hour
        self._fleet = None

    def _gone(self, machine_id: str, at_latest_s: float) -> None:
        """A machine given back goes when it is empty, at the latest when its grace is over."""
        if machine_id not in self._rented:
            return
        if self.requests.staying(machine_id) >= 0.5 and self.now_s + BIN_S <= at_latest_s:
            self._at(self.now_s + BIN_S, _GONE, partial(self._gone, machine_id, at_latest_s))
            return
        self.requests.lose([machine_id])
        self._pay(machine_id)

    # What the service does.

    def _look(self) -> None:
        """The regular decision: a new target, and pools that refused may be asked again."""
        self._closed.clear()
        if self.now_s > 0:
            load = self.requests.load()
            self.target = autoscale.target_replicas(load, self.target, self.autoscale, self.now_s)
            able = load.ready is None or load.tokens_per_s <= load.ready * self.autoscale.replica_tokens_per_s
            self.able_s += self.market_rules.decide_s if able else 0.0
        self._decide()

    def _decide(self) -> None:
        fleet, prices = self._seen_fleet(), self.market_rules
        held = fleet.by_pool(SPOT, "starting", "ready")
        for pool, number in self._lost.items():
            held[pool] = held.get(pool, 0) + number
        self._observed = self._observed.after(
            self.now_s, held=held, lost=self._lost, warned=self._warned, refused=self._refused, on_demand=fleet.count(ON_DEMAND)
        )
        self._lost, self._warned, self._refused = {}, {}, {}
        if not self._offers:
            self._offers = tuple(Offer(pool, SPOT, prices.spot_price) for pool in sorted(self.pools))
            self._offers += (Offer(self.pools[0], ON_DEMAND, prices.on_demand_price),)
        self._apply(self.policy(self.target.num_replicas, fleet, Market(self._offers, self._observed), self.now_s))
        fleet = self._seen_fleet()
        spot, fixed = fleet.count(SPOT, "ready"), fleet.count(ON_DEMAND, "ready")
        self.samples.append(Sample(self.now_s, self.target.num_replicas, spot, fixed, len(fleet.machines)))

    def _seen_fleet(self) -> Fleet:
        if self._fleet is None:
            self._fleet = Fleet(tuple([rented.machine for rented in self._rented.values()]))
        return self._fleet

    def _apply(self, plan: Plan) -> None:
        for machine_id in plan.retire:
            rented = self._rented[machine_id]
            serves, rules = rented.machine.state == "ready", self.market_rules
            self._become(rented, "draining")
            if serves:
                self.requests.leave([machine_id])
            gone = partial(self._gone, machine_id, self.now_s + rules.grace_s)
            self._at(self.now_s + (rules.retire_s if serves else 0.0), _GONE, gone)
        held = self._seen_fleet().by_pool(SPOT, "starting", "ready")
        for pool, wanted in plan.spot.items():
            if wanted > held.get(pool, 0) and pool not in self._closed:
                self._ask(pool, wanted - held.get(pool, 0))
        for _ in range(plan.on_demand - self._seen_fleet().count(ON_DEMAND, "starting", "ready")):
            self._rent(self.pools[0], ON_DEMAND, self.market_rules.on_demand_price)

    def _ask(self, pool: Pool, number: int) -> None:
        room = max(0, self._capacity.get(pool, 0) - len(self._in(pool)))
        for _ in range(min(number, room)):
            self._rent(pool, SPOT, self.market_rules.spot_price)
        if number > room:
            self._closed.add(pool)  # until the next regular decision: clouds limit how often one may ask
            self._at(self.now_s + self.market_rules.answer_s, _REFUSED, partial(self._no, pool, number - room))

    def _no(self, pool: Pool, number: int) -> None:
        self._refused[pool] = number
        self._decide()
