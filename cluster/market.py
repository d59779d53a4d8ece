"""The market for machines: what can be rented where, at what price, and what has been learned of its dangers.

Promise: plain values. `Pool` is where capacity is taken from (an instance type in a zone), `Offer` is a price in it, and
`Observations` is what a service has seen happen there: hours held, machines lost, requests refused, and how long a pool had been calm
when it collapsed. `after` is the only way on: production and the simulator feed the same observations to the same policies.
Price: a few microseconds per pool and look. After: SpotHedge (SkyServe, EuroSys 2025) for zones that are left alone for a while; that a
pool's danger falls with the time it has been calm is what the recorded traces show (docs/spot.md).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

__all__ = ["CALM_S", "ON_DEMAND", "SPOT", "Market", "MarketKind", "Observations", "Offer", "Pool", "PoolRecord"]

MarketKind = Literal["spot", "on-demand"]
"""How a machine is rented; the values of Ray's node label `ray.io/market-type`."""
SPOT: MarketKind = "spot"
ON_DEMAND: MarketKind = "on-demand"
CALM_S = (0.0, 600.0, 1200.0, 2400.0, 4800.0, 9600.0, 19200.0, 38400.0)
"""Where the ages begin by which dangers are told apart: seconds for which a pool has held machines without losing one."""
ALONE = 0.6
"""A pool that holds this share of all spot machines is alone: what is left without it cannot carry the load."""
COLLAPSE = 0.5
"""A pool that loses this share of what is held in it at once has collapsed."""
SHORTAGE = 0.25
"""A service that loses this share of all its machines at once is short of them: a queue forms, which has to be served afterwards, too."""


class Pool(NamedTuple):
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
    """Machines that the market took away while the pool kept most of the others."""
    last_lost_s: float | None = None
    last_refused_s: float | None = None
    calm_since_s: float | None = None
    """Since when it has held machines without losing one; None: holds none."""
    hours: tuple[float, ...] = (0.0,) * len(CALM_S)
    """Hours with machines in it, by how long it had been calm (CALM_S)."""
    collapses: tuple[float, ...] = (0.0,) * len(CALM_S)
    """Collapses that nobody gave notice of in time, by the same."""
    alone: tuple[float, ...] = (0.0,) * len(CALM_S)
    """Of the hours, those in which it held most of all spot machines: too much to lose at once."""
    held: int = 0
    """Machines left in it at the last look."""

    def age(self, now_s: float) -> int:
        """Which of CALM_S it is in."""
        return 0 if self.calm_since_s is None else bisect_right(CALM_S, now_s - self.calm_since_s) - 1


@dataclass(frozen=True, slots=True)
class Observations:
    """What has been seen of every pool, up to `now_s`."""

    now_s: float = 0.0
    pools: Mapping[Pool, PoolRecord] = field(default_factory=dict)
    num_started: float = 0.0
    """Spot machines that were started in pools that had been calm for a while."""
    spot_hours: float = 0.0
    """Machine-hours, all pools."""
    on_demand_hours: float = 0.0
    last_short_s: float | None = None
    """When so much was lost at once that the rest could not carry the load."""
    began_s: float | None = None
    """When the first look was taken; None before it. Until then nothing had been seen, whatever the clock says."""

    @property
    def hours(self) -> float:
        """Hours since the first look."""
        return 0.0 if self.began_s is None else (self.now_s - self.began_s) / 3600

    def of(self, pool: Pool) -> PoolRecord:
        """The record of `pool`, empty for one that was never tried."""
        return self.pools.get(pool, _UNKNOWN)

    def after(
        self,
        now_s: float,
        *,
        held: Mapping[Pool, int],
        lost: Mapping[Pool, int] | None = None,
        warned: Mapping[Pool, int] | None = None,
        refused: Mapping[Pool, int] | None = None,
        on_demand: int = 0,
    ) -> Observations:
        """With what happened since the last look: `held` spot machines until now (those lost included), of which the market took `lost`;
        `refused` ones it did not give; `on_demand` machines beside them.

        A machine is lost when it is known that it will go. `warned` are those of the lost that said so in good time
        (`placement.warns`): their replacements serve before anyone's patience is over.
        """
        was_s = now_s if self.began_s is None else self.now_s
        lost, warned, refused, hours = lost or {}, warned or {}, refused or {}, max(0.0, now_s - was_s) / 3600
        everything, started, pools = sum(held.values()), 0, dict(self.pools)
        for pool in {*held, *lost, *refused, *pools}:
            record, number = self.of(pool), held.get(pool, 0)
            if not number and not record.held and pool not in lost and pool not in refused:
                continue
            if record.age(now_s):
                started += max(0, number - record.held)
            gone, unforeseen = lost.get(pool, 0), lost.get(pool, 0) > warned.get(pool, 0)
            event = _Event(was_s, now_s, number, gone, unforeseen, refused.get(pool, 0), number > ALONE * everything)
            pools[pool] = _after(record, event)
        short = sum(lost.values()) > SHORTAGE * (everything + on_demand)
        return Observations(
            now_s,
            pools,
            self.num_started + started,
            self.spot_hours + everything * hours,
            self.on_demand_hours + on_demand * hours,
            now_s if short else self.last_short_s,
            now_s if self.began_s is None else self.began_s,
        )


class _Event(NamedTuple):
    was_s: float
    now_s: float
    held: int
    lost: int
    unforeseen: bool
    refused: int
    alone: bool


_UNKNOWN = PoolRecord()


def _after(record: PoolRecord, event: _Event) -> PoolRecord:
    was_s, now_s, held, lost, unforeseen, refused, alone = event
    age, hours, collapsed = record.age(was_s), max(0.0, now_s - was_s) / 3600, 0 < lost >= COLLAPSE * held
    calm_since_s = record.calm_since_s if held > lost else None
    if held > lost and (calm_since_s is None or lost):
        calm_since_s = now_s
    return PoolRecord(
        record.machine_hours + held * hours,
        record.num_lost + (0 if collapsed else lost),
        now_s if lost else record.last_lost_s,
        now_s if refused else record.last_refused_s,
        calm_since_s,
        _plus(record.hours, age, hours) if held else record.hours,
        _plus(record.collapses, age, 1.0) if collapsed and unforeseen else record.collapses,
        _plus(record.alone, age, hours) if held and alone else record.alone,
        held - lost,
    )


def _plus(values: tuple[float, ...], index: int, more: float) -> tuple[float, ...]:
    return (*values[:index], values[index] + more, *values[index + 1 :])


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
        return tuple(sorted((o for o in self.offers if o.market == SPOT), key=_by_price))

    def on_demand(self) -> tuple[Offer, ...]:
        """The on-demand offers, cheapest first."""
        return tuple(sorted((o for o in self.offers if o.market == ON_DEMAND), key=_by_price))


def _by_price(offer: Offer) -> tuple[float, Pool]:
    return offer.price_per_hour, offer.pool
