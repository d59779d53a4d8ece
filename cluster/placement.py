"""Where the replicas run: spot first, spread over pools, hedged by what has been observed, on demand where spot is short.

Promise: `place` is a pure function from the target, the fleet and the market to a plan with reasons: how many spot machines each pool
should hold, how many on demand, and which machines to give up. It never takes capacity away before its replacement is ready.
Production (Serve's autoscaling, Ray's autoscaler) and the simulator call it through this module, so they cannot differ.
Price: one pass over the fleet and the offers. After: SpotHedge (SkyServe, EuroSys 2025), which it must not fall behind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.machines import Fleet, Machine
from cluster.market import ON_DEMAND, SPOT, Market, Pool
from cluster.settings import settings

__all__ = ["PlacementSettings", "Plan", "place"]


@settings
class PlacementSettings:
    """How much safety to buy."""

    min_on_demand: int = 0
    """On-demand replicas that are always there, whatever the market does."""
    max_spot: int | None = None
    """At most so many spot replicas; None: no limit. 0 serves from on-demand machines alone."""
    cold_start_s: float = 183.0
    """From asking for a machine until its replica serves."""
    retry_refused_s: float = 60.0
    """How long a pool that had nothing is left alone."""

    def __post_init__(self) -> None:
        if self.min_on_demand < 0 or (self.max_spot is not None and self.max_spot < 0):
            raise ValueError("min_on_demand and max_spot must not be negative")
        if not self.cold_start_s >= 0 or not self.retry_refused_s >= 0:
            raise ValueError("cold_start_s and retry_refused_s must not be negative")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to hold: counts that include what is starting, and exclude what is draining."""

    spot: Mapping[Pool, int]
    """Spot machines by pool."""
    on_demand: int
    """On-demand machines."""
    retire: tuple[str, ...] = ()
    """Ids of the machines to drain and give back now, the costliest and most endangered first."""
    reasons: tuple[str, ...] = field(default=())

    @property
    def num_spot(self) -> int:
        """Spot machines in all pools."""
        return sum(self.spot.values())


def place(target: int, fleet: Fleet, market: Market, settings: PlacementSettings, now_s: float) -> Plan:
    """What to hold for `target` serving replicas. To launch: the plan's counts less what the fleet has, pool by pool."""
    most = target if settings.max_spot is None else min(target, settings.max_spot)
    held = fleet.by_pool(SPOT, "starting", "ready")
    spot = _spread(max(0, most - settings.min_on_demand), held, market, settings, now_s)
    ready = fleet.count(SPOT, "ready")
    on_demand = max(settings.min_on_demand, target - ready)
    retire = _surplus(fleet, spot, on_demand)
    return Plan(spot, on_demand, retire, (f"{ready} of {target} on spot, {on_demand} on demand",))


def _spread(count: int, held: Mapping[Pool, int], market: Market, settings: PlacementSettings, now_s: float) -> dict[Pool, int]:
    """`count` machines over the pools that can be asked, evenly; a pool that just refused keeps what it has."""
    limit: dict[Pool, float] = {}
    for offer in market.spot():
        refused_s = market.observed.of(offer.pool).last_refused_s
        shut = refused_s is not None and now_s - refused_s < settings.retry_refused_s
        limit[offer.pool] = held.get(offer.pool, 0) if shut else math.inf if offer.max_replicas is None else offer.max_replicas
    plan = dict.fromkeys(limit, 0)
    for _ in range(count):
        open_pools = [pool for pool in plan if plan[pool] < limit[pool]]
        if not open_pools:
            break
        plan[min(open_pools, key=lambda pool: plan[pool])] += 1
    return {pool: number for pool, number in plan.items() if number}


def _surplus(fleet: Fleet, spot: Mapping[Pool, int], on_demand: int) -> tuple[str, ...]:
    """What the fleet has beyond the plan: machines that do not serve yet before those that do, the costliest first."""
    room, extra = {**spot}, []
    for machine in sorted((m for m in fleet.machines if m.state != "draining"), key=lambda m: (m.state != "ready", m.since_s)):
        if machine.market == ON_DEMAND:
            on_demand -= 1
            if on_demand < 0:
                extra.append(machine)
        else:
            room[machine.pool] = room.get(machine.pool, 0) - 1
            if room[machine.pool] < 0:
                extra.append(machine)
    return tuple(m.machine_id for m in sorted(extra, key=_costliest))


def _costliest(machine: Machine) -> tuple[bool, float, float]:
    return (machine.state == "ready", -machine.price_per_hour, -machine.since_s)
