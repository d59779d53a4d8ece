"""What machines cost over time: a price holds from when it was set until the next one in the same pool.

Promise: `dollars` is the exact integral of the price over a stay, so a stay cut into pieces costs what it costs whole. Where a zone has
no price of its own, its region's stands in, then the dearest zone's of the type (never the cheapest: a bill should not flatter), then
what the owner gave for any machine. A time before the first known price has that first price. Price: a pass over a pool's prices.
Source: AWS's spot price history, which lists changes only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cluster.market import ON_DEMAND, SPOT, MarketKind, Pool

__all__ = ["ANY", "Price", "PriceBook", "own_prices", "pool_data", "region_of"]

ANY = "any"
"""The zone or type of a price that holds wherever nothing nearer is known."""
_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars an hour in a pool from `since_s` (unix seconds) on. An on-demand price has its region as the pool's zone."""

    pool: Pool
    market: MarketKind
    per_hour: float
    since_s: float = 0.0
    source: str = "AWS"
    """Who says so: AWS, list (the table in cluster/prices.py), assumed, or yours."""

    def __post_init__(self) -> None:
        if not 0 <= self.per_hour < math.inf:
            raise ValueError(f"{self.pool} {self.market}: price is {self.per_hour}; must be a number of dollars an hour")


def pool_data(pool: Pool) -> dict[str, str]:
    """A pool as it is written to files, `Pool(**…)` when it is read again."""
    return {"zone": pool.zone, "instance_type": pool.instance_type}


def region_of(zone: str) -> str:
    """The region of an availability zone; anything else stays as it is.

    >>> region_of("us-west-2b"), region_of("us-west-2"), region_of("local")
    ('us-west-2', 'us-west-2', 'local')
    """
    return zone[:-1] if len(zone) > 2 and zone[-1].isalpha() and zone[-2].isdigit() else zone


def own_prices(per_hour: Mapping[str, float]) -> tuple[Price, ...]:
    """Prices as their owner gives them: dollars an hour for `spot`, for `on-demand`, or for an instance type on demand.

    ValueError for what is no price.
    """
    prices = []
    for name, value in per_hour.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"node_prices: {name} is {value}; must be a number of dollars an hour")
        market: MarketKind = SPOT if name == SPOT else ON_DEMAND
        kind = ANY if name in (SPOT, ON_DEMAND) else name
        prices.append(Price(Pool(ANY, kind), market, float(value), source="yours"))
    return tuple(prices)


@dataclass(frozen=True, slots=True)
class PriceBook:
    """Every known price, by pool and market, oldest first."""

    series: Mapping[tuple[Pool, MarketKind], tuple[Price, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, prices: Iterable[Price]) -> PriceBook:
        """A book of these prices."""
        return cls().with_prices(prices)

    def with_prices(self, prices: Iterable[Price]) -> PriceBook:
        """The book with more prices; one that is set for the same moment replaces the one that was."""
        new: dict[tuple[Pool, MarketKind], dict[float, Price]] = {}
        for price in prices:
            new.setdefault((price.pool, price.market), {})[price.since_s] = price
        changed = {key: {price.since_s: price for price in self.series.get(key, ())} | at for key, at in new.items()}
        return PriceBook({**self.series, **{key: tuple(at[since_s] for since_s in sorted(at)) for key, at in changed.items()}})

    def prices(self) -> tuple[Price, ...]:
        """All of them."""
        return tuple(price for series in self.series.values() for price in series)

    def at(self, pool: Pool, market: MarketKind, moment_s: float) -> Price | None:
        """The price that holds at a moment; None where nothing is known."""
        series = self._nearest(pool, market)
        return next((price for price in reversed(series) if price.since_s <= moment_s), series[0] if series else None)

    def dollars(self, pool: Pool, market: MarketKind, start_s: float, end_s: float) -> float | None:
        """What a machine costs from `start_s` to `end_s`; None where no price is known.

        >>> pool = Pool("us-west-2a", "m7i.large")
        >>> book = PriceBook.of([Price(pool, "spot", 1.0, since_s=0), Price(pool, "spot", 3.0, since_s=1800)])
        >>> book.dollars(pool, "spot", 0, 3600)
        2.0
        """
        series = self._nearest(pool, market)
        if not series:
            return None
        starts = [-math.inf, *(price.since_s for price in series[1:])]
        ends = [*starts[1:], math.inf]
        return sum(
            price.per_hour * max(0.0, min(end_s, last) - max(start_s, first)) / _HOUR_S
            for price, first, last in zip(series, starts, ends, strict=True)
        )

    def _nearest(self, pool: Pool, market: MarketKind) -> tuple[Price, ...]:
        for zone in (pool.zone, region_of(pool.zone)):
            if series := self.series.get((Pool(zone, pool.instance_type), market)):
                return series
        alike = [s for (other, kind), s in self.series.items() if kind == market and other.instance_type == pool.instance_type and s]
        if alike and pool.instance_type != ANY:
            return max(alike, key=lambda series: (series[-1].per_hour, series[-1].pool))
        return self.series.get((Pool(ANY, ANY), market), ())
