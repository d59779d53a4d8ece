"""Where the replicas run: spot first, spread over pools, hedged by what has been observed, on demand where spot is short.

Promise: `place` is a pure function from the target, the fleet and the market to a plan with reasons: how many spot machines each pool
should hold, how many on demand, and which machines to give up. It never takes capacity away before its replacement is ready.
Production (Serve's autoscaling, Ray's autoscaler) and the simulator call it through this module, so they cannot differ.
Price: a pass over the pools. After: SpotHedge (SkyServe, EuroSys 2025); what is done otherwise, and what it brings, is in docs/spot.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cluster import risk
from cluster.machines import Fleet
from cluster.market import ON_DEMAND, SPOT, Market, MarketKind, Offer, Pool
from cluster.settings import settings

__all__ = ["PlacementSettings", "Plan", "place", "surplus"]


@settings
class PlacementSettings:
    """How much safety to buy, and where."""

    min_on_demand: int = 0
    """On-demand replicas that are always there, whatever the market does."""
    max_spot: int | None = None
    """At most so many spot replicas; None: no limit. 0 serves from on-demand machines alone."""
    cold_start_s: float = 183.0
    """From asking for a machine until its replica serves."""
    patience_s: float = 100.0
    """How long a request may wait before it fails: what it saves up, a smaller rest of the fleet can still serve."""
    utilization: float = 0.8
    """Share of the target that the load itself needs (the autoscaler's): the rest is headroom."""
    on_demand_share: float = 0.9
    """Share of the target that on-demand machines stand in for: headroom is worth a spot price, not more. 1: all of it."""
    failed_share: float = 0.0002
    """Share of the requests that may fail because pools collapse: below it nothing more is spent on standing by."""
    reinvest: float = 0.75
    """Share of what is saved against SpotHedge that is spent on standing by for collapses. 0: no hedge."""
    calm_s: float = 600.0
    """A pool that has held machines for so long without losing one is trusted with what it is starting."""
    retry_refused_s: float = 60.0
    """How long a pool that had nothing is left alone."""

    def __post_init__(self) -> None:
        if self.min_on_demand < 0 or (self.max_spot is not None and self.max_spot < 0):
            raise ValueError("min_on_demand and max_spot must not be negative")
        for name in ("cold_start_s", "patience_s", "calm_s", "retry_refused_s", "reinvest"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: is {getattr(self, name)}; must not be negative")
        for name in ("utilization", "on_demand_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: is {getattr(self, name)}; must be above 0 and at most 1")

    @property
    def survival_share(self) -> float:
        """Share of the target that must outlive a collapse so that no request fails.

        The rest waits: requests that came in the first cold_start_s - patience_s have to be served by what is left, within a cold start.

        >>> round(PlacementSettings().survival_share, 2)
        0.36
        """
        return self.utilization * max(0.0, 1 - self.patience_s / self.cold_start_s) if self.cold_start_s > 0 else 0.0


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
    view = _View(fleet, market, settings, now_s)
    hedge = view.hedge(target)
    floor = max(settings.min_on_demand, hedge)
    most = max(0, target - floor if settings.max_spot is None else min(target - floor, settings.max_spot))
    reserve = min(math.ceil(0.1 * most), round(most * risk.lost_per_start(market.observed, settings.cold_start_s)))
    standing = fleet.count(ON_DEMAND, "ready")
    spot, asked = view.spread(most + reserve, keep=target - standing)
    need, ready, coming = view.need(target, most), min(sum(view.ready.values()), most + reserve), view.trusted()
    on_demand = max(
        floor,
        need - ready - coming - asked,  # what spot will not cover
        min(standing, need - ready),  # those that serve stay until spot does
        min(standing + fleet.count(ON_DEMAND, "starting"), need - ready - coming),  # those that start, until spot has been granted
    )
    reasons = [f"target {target}: {ready} spot ready, {coming} coming from calm pools, {asked} asked of them; {on_demand} on demand"]
    if reserve:
        reasons.append(f"{reserve} more on spot, for those that the market takes one by one")
    if hedge:
        reasons.append(f"{hedge} on demand stand by: the spot machines are in too few pools, and these have not been calm for long")
    if need < target:
        reasons.append(f"on demand stands in for {need} of {target}: the headroom is bought on spot alone")
    return Plan(spot, on_demand, surplus(fleet, spot, on_demand), tuple(reasons))


class _View:
    """What `place` asks of the fleet and the market."""

    def __init__(self, fleet: Fleet, market: Market, settings: PlacementSettings, now_s: float) -> None:
        self.settings, self.now_s, self.seen, self.offers = settings, now_s, market.observed, _worthwhile(market)
        self.ready, self.starting = fleet.by_pool(SPOT, "ready"), fleet.by_pool(SPOT, "starting")
        self.held, self.leaving = fleet.by_pool(SPOT, "ready", "starting"), fleet.by_pool(SPOT, "draining")
        self.price_share = _price_share(market)
        self.calm = [o.pool for o in self.offers if o.pool in self.held and self._calm_for(o.pool, settings.calm_s)]
        self.open = [o.pool for o in self.offers if o.pool not in self.leaving and not self._refused(o.pool, settings.retry_refused_s)]

    def _calm_for(self, pool: Pool, seconds: float) -> bool:
        since_s = self.seen.of(pool).calm_since_s
        return since_s is not None and self.now_s - since_s >= seconds

    def _refused(self, pool: Pool, within_s: float) -> bool:
        at_s = self.seen.of(pool).last_refused_s
        return at_s is not None and self.now_s - at_s < within_s

    def quiet(self) -> bool:
        """Whether nothing has been taken away of late."""
        recent = (r.last_lost_s for r in self.seen.pools.values())
        return not self.leaving and all(at_s is None or self.now_s - at_s >= self.settings.calm_s for at_s in recent)

    def need(self, target: int, spot: int) -> int:
        """How many replicas on-demand machines make up for where spot is short. After a loss all of them: there is a queue to be served."""
        whole = not self.quiet() or not self.offers or not spot
        return target if whole else math.ceil(target * self.settings.on_demand_share)

    def trusted(self) -> int:
        """Machines that are starting in pools that have been calm."""
        return sum(number for pool, number in self.starting.items() if pool in self.calm)

    def hedge(self, target: int) -> int:
        """On-demand machines that stand by, so that what is left after the worst collapse to be feared survives it."""
        settings, share = self.settings, self.settings.survival_share * target
        if not self.offers or settings.max_spot == 0:
            return 0
        if not self.ready:  # spot comes back, if at all, as young as can be
            return max(0, min(math.ceil(share), target - 1)) if settings.reinvest else 0
        total = sum(self.ready.values())
        short = {pool: share - (total - number) for pool, number in self.ready.items() if share > total - number}
        if not short:
            return 0
        saved = settings.reinvest * risk.saved_share(self.seen, cold_start_s=settings.cold_start_s, headroom=1 - settings.on_demand_share)
        ages = risk.hedged_ages(
            self.seen,
            cost=settings.survival_share * (1 - self.price_share),
            saved=saved,
            lost_s=max(0.0, settings.cold_start_s - settings.patience_s),
            allowed=settings.failed_share,
        )
        feared = [need * ages.get(self.seen.of(pool).age(self.now_s), 0.0) for pool, need in short.items()]
        return max(0, min(math.ceil(max(feared, default=0.0)), target - 1))

    def spread(self, count: int, *, keep: int) -> tuple[dict[Pool, int], int]:
        """Spot machines by pool, `count` in all; and how many of the new ones will be there, as far as one can tell. Of those that serve
        at least `keep` stay."""
        plan, total, asked = dict(self.held), sum(self.held.values()), 0
        sure = [pool for pool in self.calm if pool in self.open]
        if count > total:
            before = sum(plan.get(pool, 0) for pool in sure)
            fill(plan, sure or self.open, count - total, self._quota)
            if self.quiet():  # a pool that has refused of late may do so again
                generous = [p for p in sure if not self._refused(p, 15 * self.settings.retry_refused_s)]
                asked = sum(plan.get(pool, 0) for pool in sure) - before if len(generous) == len(sure) else 0
        elif len(self.calm) > 1:  # enough, but unevenly spread: more where there is little; the surplus goes once that serves
            for pool in sure:
                plan[pool] = max(plan.get(pool, 0), min(count // len(self.calm), self._quota(pool)))
        probes = max(count // 10, 1 if count > 1 and len(plan) == 1 else 0)
        for pool in [pool for pool in self.open if not plan.get(pool)][:probes]:
            plan[pool] = 1  # it serves, and it shows whether the pool is worth more
        self._shrink(plan, sum(self.ready.values()) - max(count, keep))
        return plan, asked

    def _quota(self, pool: Pool) -> int:
        return next((o.max_replicas for o in self.offers if o.pool == pool and o.max_replicas is not None), 10**9)

    def _shrink(self, plan: dict[Pool, int], spare: int) -> None:
        """Give up ready machines that are not needed, where most are: the pool whose loss would hurt most; the costlier among equals."""
        rank = {offer.pool: index for index, offer in enumerate(self.offers)}
        for _ in range(min(spare, sum(plan.values()))):
            plan[max(plan, key=lambda pool: (plan[pool], rank.get(pool, len(rank))))] -= 1


def _worthwhile(market: Market) -> list[Offer]:
    """The spot offers that are cheaper than a machine on demand, the cheapest first."""
    fixed = min((offer.price_per_hour for offer in market.on_demand()), default=math.inf)
    return [offer for offer in market.spot() if offer.price_per_hour < fixed]


def _price_share(market: Market) -> float:
    """The cheapest spot price as a share of the cheapest on demand."""
    spot, fixed = market.spot(), market.on_demand()
    return min(1.0, spot[0].price_per_hour / fixed[0].price_per_hour) if spot and fixed and fixed[0].price_per_hour > 0 else 1.0


def fill(plan: dict[Pool, int], pools: list[Pool], count: int, quota: Callable[[Pool], int]) -> None:
    """Add `count` machines, where there are fewest first: as water fills basins.

    >>> plan = {Pool("a"): 3}
    >>> fill(plan, [Pool("a"), Pool("b")], 5, lambda pool: 100)
    >>> plan[Pool("a")], plan[Pool("b")]
    (4, 4)
    """
    while count > 0 and (pools := [pool for pool in pools if plan.get(pool, 0) < quota(pool)]):
        levels = sorted({plan.get(pool, 0) for pool in pools})
        low = [pool for pool in pools if plan.get(pool, 0) == levels[0]]
        rise = min([count // len(low), *(quota(pool) - levels[0] for pool in low), *(level - levels[0] for level in levels[1:2])])
        for pool in low if rise else low[:count]:
            plan[pool] = plan.get(pool, 0) + max(1, rise)
            count -= max(1, rise)


def surplus(fleet: Fleet, spot: Mapping[Pool, int], on_demand: int) -> tuple[str, ...]:
    """What the fleet has beyond the plan: machines that do not serve yet before those that do, the costliest first."""
    fixed = fleet.count(ON_DEMAND, "starting", "ready") - on_demand
    over: dict[tuple[MarketKind, Pool | None], int] = {}
    for pool, number in fleet.by_pool(SPOT, "starting", "ready").items():
        if number > spot.get(pool, 0):
            over[SPOT, pool] = number - spot.get(pool, 0)
    if fixed > 0:
        over[ON_DEMAND, None] = fixed
    if not over:
        return ()
    extra = []
    for machine in sorted((m for m in fleet.machines if m.state != "draining"), key=lambda m: (m.state == "ready", -m.since_s)):
        key = (ON_DEMAND, None) if machine.market == ON_DEMAND else (SPOT, machine.pool)
        if over.get(key, 0) > 0:
            over[key] -= 1
            extra.append(machine)
    return tuple(m.machine_id for m in sorted(extra, key=lambda m: (m.state == "ready", -m.price_per_hour, -m.since_s)))
