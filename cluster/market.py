"""The market for machines: what can be rented where, at what price, and what has been learned of its dangers.

Promise: plain values. `Pool` is where capacity is taken from (an instance type in a zone), `Offer` is a price in it, and
`Observations` is what a service has seen happen there: machine-hours held, machines lost, requests refused. `after` is the only
way on: production and the simulator feed the same observations to the same policies.
Price: a few microseconds per look. After: SpotHedge (SkyServe, EuroSys 2025) for zone lists; the rest is counting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

__all__ = ["ON_DEMAND", "SPOT", "Market", "MarketKind", "Observations", "Offer", "Pool", "PoolRecord"]

MarketKind = Literal["spot", "on-demand"]
"""How a machine is rented; the values of Ray's node label `ray.io/market-type`."""
SPOT: MarketKind = "spot"
ON_DEMAND: MarketKind = "on-demand"


@dataclass(frozen=True, slots=True, order=True)
class Pool:
    """Where capacity is taken from: machines of one type in one zone live and die together."""

    zone: str
    instance_type: str = "any"

    def __str__(self) -> str:
        return self.zone if self.instance_type == "any" else f"{self.zone}/{self.instance_type}"


@dataclass(frozen=True, slots=True)
class Offer:
    """A price for one replica's share of a machine, per hour."""

    pool: Pool
    market: MarketKind
    price_per_hour: float
    max_replicas: int | None = None
    """A quota of one's own (a node type's max_workers); None: as many as the market gives."""

    def __post_init__(self) -> None:
        if not self.price_per_hour >= 0:
            raise ValueError(f"{self.pool} {self.market}: price_per_hour is {self.price_per_hour}; must not be negative")


@dataclass(frozen=True, slots=True)
class PoolRecord:
    """What has been seen of one pool's spot machines."""

    machine_hours: float = 0.0
    """Held, ready or starting."""
    num_lost: float = 0.0
    """Machines that the market took away."""
    last_lost_s: float | None = None
    last_refused_s: float | None = None
    up_since_s: float | None = None
    """Since when it has held machines without losing one or refusing one; None: holds none."""


@dataclass(frozen=True, slots=True)
class Observations:
    """What has been seen of every pool, up to `now_s`."""

    now_s: float = 0.0
    pools: Mapping[Pool, PoolRecord] = field(default_factory=dict)

    def of(self, pool: Pool) -> PoolRecord:
        """The record of `pool`, empty for one that was never tried."""
        return self.pools.get(pool, PoolRecord())

    def after(
        self, now_s: float, *, held: Mapping[Pool, int], lost: Mapping[Pool, int] | None = None, refused: Mapping[Pool, int] | None = None
    ) -> Observations:
        """With what happened since: `held` spot machines until now, of which the market took `lost`; `refused` ones it did not give."""
        lost, refused, hours = lost or {}, refused or {}, max(0.0, now_s - self.now_s) / 3600
        pools = dict(self.pools)
        for pool in {*held, *lost, *refused, *pools}:
            pools[pool] = _after(self.of(pool), now_s, hours, held.get(pool, 0), lost.get(pool, 0), refused.get(pool, 0))
        return Observations(now_s, pools)


def _after(record: PoolRecord, now_s: float, hours: float, held: int, lost: int, refused: int) -> PoolRecord:
    up_since_s = record.up_since_s if held > lost and not lost and not refused else None
    if up_since_s is None and held > lost:
        up_since_s = now_s
    return replace(
        record,
        machine_hours=record.machine_hours + held * hours,
        num_lost=record.num_lost + lost,
        last_lost_s=now_s if lost else record.last_lost_s,
        last_refused_s=now_s if refused else record.last_refused_s,
        up_since_s=up_since_s,
    )


@dataclass(frozen=True, slots=True)
class Market:
    """What can be rented now, and what is known of it."""

    offers: tuple[Offer, ...]
    observed: Observations = Observations()

    def __post_init__(self) -> None:
        if not self.offers:
            raise ValueError("market: there is no offer at all; name at least one pool, spot or on demand")

    def spot(self) -> tuple[Offer, ...]:
        """The spot offers, cheapest first."""
        return tuple(sorted((o for o in self.offers if o.market == SPOT), key=lambda o: (o.price_per_hour, o.pool)))

    def on_demand(self) -> tuple[Offer, ...]:
        """The on-demand offers, cheapest first."""
        return tuple(sorted((o for o in self.offers if o.market == ON_DEMAND), key=lambda o: (o.price_per_hour, o.pool)))
