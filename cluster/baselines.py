"""What others do, as policies of the same form: the rows that ours is held against.

Promise: each is handed the same target by the same autoscaler, sees the same market and keeps its own memory; where a paper leaves a choice
open, the choice is the one that serves it better. Price: a pass over the pools per decision.
Source of `SkyServe`: SpotHedge in "SkyServe: Serving AI Models across Regions and Clouds with Spot Instances" (EuroSys 2025): zones move
between an available and a preempting list, N + extra spot replicas are asked for, and min(N, N + extra - ready spot) on demand.
"""

from __future__ import annotations

from collections.abc import Mapping

from cluster.machines import Fleet
from cluster.market import SPOT, Market, Pool
from cluster.placement import Plan, surplus

__all__ = ["SkyServe", "even_spread", "on_demand_only", "spot_only"]


def on_demand_only(target: int, fleet: Fleet, market: Market, now_s: float) -> Plan:
    """Nothing vanishes, everything costs."""
    return _plan(fleet, {}, target, "on demand only")


def even_spread(target: int, fleet: Fleet, market: Market, now_s: float) -> Plan:
    """The same number of spot machines in every zone, come what may: what a group over several zones does."""
    pools = [offer.pool for offer in market.spot()]
    each, more = divmod(target, len(pools))
    return _plan(fleet, {pool: each + (index < more) for index, pool in enumerate(pools)}, 0, "the same everywhere")


def spot_only(target: int, fleet: Fleet, market: Market, now_s: float) -> Plan:
    """Spot wherever it can be had, and nothing where it cannot: what a zone refused just now is asked of the others."""
    held = fleet.by_pool(SPOT, "starting", "ready")
    refused = {p for p, record in market.observed.pools.items() if record.last_refused_s == market.observed.now_s}
    open_pools = [offer.pool for offer in market.spot() if offer.pool not in refused] or [offer.pool for offer in market.spot()]
    return _plan(fleet, _add(held, target, open_pools), 0, "spot only")


class SkyServe:
    """SpotHedge: two zone lists, a fixed number of extra spot replicas, and on-demand machines until enough spot is ready."""

    def __init__(self, extra: int) -> None:
        self._extra = extra
        self._preempting: set[Pool] = set()

    def __call__(self, target: int, fleet: Fleet, market: Market, now_s: float) -> Plan:
        """One decision."""
        zones = [offer.pool for offer in market.spot()]
        ready = fleet.by_pool(SPOT, "ready")
        self._preempting -= {zone for zone in ready if market.observed.of(zone).last_lost_s != now_s}
        for zone, record in market.observed.pools.items():
            if market.observed.now_s in (record.last_lost_s, record.last_refused_s):
                self._preempting.add(zone)
        available = [zone for zone in zones if zone not in self._preempting]
        if len(available) < min(2, len(zones)):
            self._preempting, available = set(), zones
        wanted, num_ready = target + self._extra, sum(ready.values())
        spot = _add(fleet.by_pool(SPOT, "starting", "ready"), wanted, available)
        return _plan(fleet, spot, min(target, wanted - num_ready), f"{num_ready} of {target} + {self._extra} spot ready")


def _add(held: Mapping[Pool, int], wanted: int, open_pools: list[Pool]) -> dict[Pool, int]:
    """What is held, up to `wanted` in all: new ones in turn over the open pools, those with none first; given up where most are."""
    plan = {**dict.fromkeys(open_pools, 0), **held}
    more = wanted - sum(plan.values())
    each, rest = divmod(max(0, more), len(open_pools))
    for index, pool in enumerate(sorted(open_pools, key=plan.__getitem__)):
        plan[pool] += each + (index < rest)
    for _ in range(-more):
        plan[max(plan, key=plan.__getitem__)] -= 1
    return plan


def _plan(fleet: Fleet, spot: Mapping[Pool, int], on_demand: int, reason: str) -> Plan:
    on_demand = max(0, on_demand)
    return Plan(spot, on_demand, surplus(fleet, spot, on_demand), (reason,))
