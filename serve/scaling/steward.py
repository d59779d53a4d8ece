"""From what is seen to what is done: one look at load and machines, one decision with its reasons, and what it needs remembered.

Promise: pure but for its own memory. Each `decide` calls `autoscale.target_replicas` and `placement.place` through their modules,
the functions that the simulator replays, and turns their plan into numbers for Serve's two deployments, bundles to ask Ray's
autoscaler for, and nodes to give back. A machine that goes without having been given back counts as taken by the market, from its notice
on; a launch that failed (or was never answered) as refused. A machine with notice is replaced at once and serves until it is drained, so
Serve and Ray are asked for the plan and for what it still holds.
Price: microseconds. Source: docs/spot.md has the policies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cluster import autoscale, placement
from cluster.autoscale import AutoscaleSettings, Load, Target
from cluster.census import Census
from cluster.machines import Fleet, Machine
from cluster.market import ON_DEMAND, SPOT, MarketKind, Observations, Pool
from cluster.placement import PlacementSettings, Plan
from serve.scaling.ground import LOCAL, MARKET_LABEL, POOL_LABEL, Ground

__all__ = ["Bundle", "Decision", "Sight", "Steward"]

UNANSWERED_S = 60.0
"""A machine that was asked for and is not even being started after so long is refused, though nobody says so. (Without node types nobody
sees machines that are being started: then it is refused if it does not serve after a cold start.)"""


@dataclass(frozen=True, slots=True)
class Sight:
    """What is to be seen at one moment."""

    now_s: float
    load: Load
    census: Census
    replicas: Mapping[str, Mapping[str, Any]]
    """Reports of running replicas: {"node_id", "deployment", "leaving"}."""
    wanted: Mapping[MarketKind, int]
    """How many replicas Serve is told to run now."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """Resources that Ray's autoscaler is asked to have, on a node with these labels."""

    resources: tuple[tuple[str, float], ...]
    labels: tuple[tuple[str, str], ...]
    count: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done, and why."""

    now_s: float
    replicas: Mapping[MarketKind, int]
    """Replicas by market: what Serve's deployments are set to."""
    bundles: tuple[Bundle, ...]
    give_back: tuple[str, ...]
    """Ray nodes (ids) that hold nothing else and are to be drained."""
    reasons: tuple[str, ...]
    load: Load
    fleet: Fleet

    def note(self) -> dict[str, Any]:
        """Plain data, for the log and the status page."""
        counts = Counter(f"{m.market} {m.state}" for m in self.fleet.machines)
        return {
            "decided_s": round(self.now_s, 1), "replicas": dict(self.replicas), "machines": dict(counts), "give_back": list(self.give_back),
            "tokens_per_s": round(self.load.tokens_per_s, 1), "streams": self.load.streams, "queued": self.load.queued,
            "reasons": list(self.reasons),
        }  # fmt: skip

    def differs(self, other: Decision | None) -> bool:
        """Whether it asks for something else than `other`."""
        return other is None or (self.replicas, self.bundles, self.give_back) != (other.replicas, other.bundles, other.give_back)


@dataclass(slots=True)
class Steward:
    """Decides, and remembers what the next decision needs."""

    ground: Ground
    autoscale: AutoscaleSettings
    placement: PlacementSettings
    target: Target
    observed: Observations = field(default_factory=Observations)
    _nodes: dict[str, Counter[Pool]] = field(default_factory=dict)
    """Spot machines at the last look: node -> pool -> how many."""
    _given_back: set[str] = field(default_factory=set)
    """Nodes that drain by our own will, or were asked to at the last look."""
    _since: dict[str, float] = field(default_factory=dict)
    """Machine -> when it was first seen."""
    _others: dict[str, int] = field(default_factory=dict)
    """Node -> places that somebody else uses."""
    _launching: dict[str, int] = field(default_factory=dict)
    """Machines that were being started at the last look, by node type."""
    _heard_s: float | None = None
    """Refusals up to then are counted."""
    _short: dict[Pool, float] = field(default_factory=dict)
    """Pool -> since when it has held less than the plan."""
    _plan: Plan | None = None

    def decide(self, sight: Sight) -> Decision:
        """Look once."""
        noticed = self.ground.noticed(sight.census, sight.replicas)
        fleet = self._fleet(sight, noticed)
        self._learn(sight, fleet)
        market = self.ground.market(self.observed)
        ready = sum(machine.state == "ready" for machine in fleet.machines)
        load = replace(sight.load, ready=ready or None)  # with none at all, a queue is all that there is to see
        self.target = autoscale.target_replicas(load, self.target, self.autoscale, sight.now_s)
        plan = self._plan = placement.place(self.target.num_replicas, fleet, market, self.placement, sight.now_s)
        give_back = self._to_give_back(sight.census, fleet, plan)
        self._given_back &= {node.node_id for node in sight.census.nodes if node.draining}
        self._given_back |= set(give_back)
        replicas: dict[MarketKind, int] = {SPOT: plan.num_spot + noticed[SPOT], ON_DEMAND: plan.on_demand + noticed[ON_DEMAND]}
        told = (f"{sum(noticed.values())} more, whose machines have been given notice, serve until they are drained",) if noticed else ()
        reasons = (self.target.reason, *plan.reasons, *told)
        return Decision(sight.now_s, replicas, self._bundles(plan, sight.census), give_back, reasons, load, fleet)

    def _fleet(self, sight: Sight, noticed: Mapping[MarketKind, int]) -> Fleet:
        """The machines, each with the time since which it has been there."""
        seen = sight.census
        fewer = [kind for kind, count in self._launching.items() if seen.launching.get(kind, 0) < count]
        self._launching = dict(seen.launching)
        for name in [name for name in self._since if name.startswith(tuple(f"launching {kind}/" for kind in fewer))]:
            del self._since[name]  # the one that is done may be any of its type
        fleet = self.ground.fleet(seen, sight.replicas, sight.wanted, sight.now_s, others=self._others)
        self._since = {m.machine_id: self._since.get(m.machine_id, m.since_s) for m in fleet.machines}
        settled = all(sight.wanted.get(market, 0) <= fleet.count(market, "ready") + noticed[market] for market in (SPOT, ON_DEMAND))
        self._others = self.ground.others(seen, sight.replicas, self._others, settled=settled)
        return Fleet(tuple(replace(machine, since_s=self._since[machine.machine_id]) for machine in fleet.machines))

    def _learn(self, sight: Sight, fleet: Fleet) -> None:
        """What was held, taken and refused since the last look."""
        staying = [m for m in fleet.machines if m.market == SPOT and m.state != "draining"]
        nodes: dict[str, Counter[Pool]] = {}
        for machine in staying:
            nodes.setdefault(self.ground.node_of(machine.machine_id), Counter())[machine.pool] += 1
        lost, warned = self._lost(sight)
        self._nodes = nodes
        held = dict(Counter(machine.pool for machine in staying))
        refused = self._refused(sight, held)
        refused.update(m.pool for m in placement.overdue(fleet, self.placement, sight.now_s) if m.market == SPOT)
        held_before, fixed = Counter(held) + lost, fleet.count(ON_DEMAND)
        self.observed = self.observed.after(sight.now_s, held=held_before, lost=lost, warned=warned, refused=refused, on_demand=fixed)

    def _lost(self, sight: Sight) -> tuple[Counter[Pool], Counter[Pool]]:
        """What the market has taken, or said that it will, since the last look; and what of that it said in good time."""
        known = {node.node_id: node for node in sight.census.nodes}
        lost: Counter[Pool] = Counter()
        warned: Counter[Pool] = Counter()
        for name, pools in self._nodes.items():
            node = known.get(name)
            if not name or name in self._given_back or (node is not None and not node.draining and not node.leaving):
                continue
            lost += pools
            if node is not None and node.gone_s is not None and placement.warns(node.gone_s - sight.now_s, self.placement):
                warned += pools
        return lost, warned

    def _refused(self, sight: Sight, held: Mapping[Pool, int]) -> Counter[Pool]:
        """Launches that failed since the last look, and those that nobody has begun for too long."""
        heard_s = sight.now_s if self._heard_s is None else self._heard_s
        self._heard_s = max([heard_s, *(refusal.time_s for refusal in sight.census.refusals)])
        pools = {pool.instance_type: pool for pool in (self._plan.spot if self._plan else {})}
        refused: Counter[Pool] = Counter()
        for refusal in sight.census.refusals:
            if refusal.time_s > heard_s and refusal.node_type in pools:
                refused[pools[refusal.node_type]] += refusal.count
        planned = self._plan.spot if self._plan else {}
        patience_s = UNANSWERED_S if self.ground.types else max(UNANSWERED_S, self.placement.cold_start_s)
        self._short = {pool: self._short.get(pool, sight.now_s) for pool, count in planned.items() if held.get(pool, 0) < count}
        for pool, since_s in self._short.items():
            if sight.now_s - since_s > patience_s:
                refused[pool] += 1
                self._short[pool] = sight.now_s
        return refused

    def _to_give_back(self, census: Census, fleet: Fleet, plan: Plan) -> tuple[str, ...]:
        """Nodes all of whose replicas the plan retires, and that run nothing else; in the plan's order."""
        on_node: dict[str, list[Machine]] = {}
        for machine in fleet.machines:
            on_node.setdefault(self.ground.node_of(machine.machine_id), []).append(machine)
        nodes = {node.node_id: node for node in census.nodes if not node.draining}
        retired = set(plan.retire)
        order = dict.fromkeys(self.ground.node_of(name) for name in plan.retire)
        return tuple(
            name
            for name in order
            if name in nodes
            and all(machine.machine_id in retired for machine in on_node[name])
            and self.ground.belongs(nodes[name], len(on_node[name]))
        )

    def _bundles(self, plan: Plan, seen: Census) -> tuple[Bundle, ...]:
        """What to ask Ray for: each spot pool by its node type, on-demand machines of any type; nothing without node types."""
        if not self.ground.types:
            return ()
        size = tuple((name, amount) for name, amount in (("CPU", self.ground.cpus), ("GPU", self.ground.gpus)) if amount)
        going = self.ground.places(seen)  # Ray would take them for what is asked for
        wanted = {pool: n + going[SPOT, pool] for pool, n in sorted(plan.spot.items()) if n and pool != LOCAL}
        spot = [Bundle(size, ((POOL_LABEL, pool.instance_type),), n) for pool, n in wanted.items()]
        number = plan.on_demand + sum(n for (market, _), n in going.items() if market == ON_DEMAND)
        fixed = [Bundle(size, ((MARKET_LABEL, ON_DEMAND), ("sterna.io/role", "worker")), number)] if plan.on_demand else []
        return (*spot, *fixed)
