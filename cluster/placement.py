"""Where the replicas run: spot first, spread over pools, hedged by what has been observed, on demand where spot is short.

Promise: `place` is a pure function from the target, the fleet and the market to a plan with reasons: how many spot machines each pool
should hold, how many on demand, and which machines to give up. It never takes capacity away before its replacement is ready.
Production (Serve's autoscaling, Ray's autoscaler) and the simulator call it through this module, so they cannot differ.
Price: a pass over the pools. After: SpotHedge (SkyServe, EuroSys 2025); what is done otherwise, and what it brings, is in docs/spot.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace

from cluster import risk
from cluster.machines import Fleet, Machine
from cluster.market import ON_DEMAND, SPOT, Market, MarketKind, Offer, Pool
from cluster.settings import settings

OVERDUE = 2.0
"""A machine that has been starting for so many cold starts is not coming."""
GENEROUS = 15
"""A pool that has refused nothing for so many times `retry_refused_s` is trusted to give what is asked of it."""

__all__ = ["PlacementSettings", "Plan", "drain_at", "fitted", "overdue", "place", "surplus", "warns"]


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
    on_demand_share: float = 0.85
    """Share of the target that on-demand machines stand in for: headroom is worth a spot price, not more. 1: all of it."""
    failed_share: float = 0.0004
    """Share of the requests that may fail because pools collapse: below it nothing more is spent on standing by."""
    reinvest: float = 0.75
    """Share of what is saved against SpotHedge that is spent on standing by for collapses. 0: no hedge."""
    calm_s: float = 600.0
    """A pool that has held machines for so long without losing one is trusted with what it is starting."""
    retry_refused_s: float = 60.0
    """How long a pool that had nothing is left alone."""
    drain_lead_s: float = 30.0
    """How long before its end a machine that was given notice is drained. Its replacement is asked for at the notice; until the drain it
    serves and admits as before, for a cold start is longer than any notice: drained at once, it would only begin the shortage sooner.
    30 s: all that Google Cloud and Azure give, and room for its streams to move."""

    def __post_init__(self) -> None:
        if self.min_on_demand < 0 or (self.max_spot is not None and self.max_spot < 0):
            raise ValueError("min_on_demand and max_spot must not be negative")
        for name in ("cold_start_s", "patience_s", "calm_s", "retry_refused_s", "reinvest", "drain_lead_s"):
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
    late = overdue(fleet, settings, now_s)
    if late:
        fleet = Fleet(tuple(machine for machine in fleet.machines if machine not in late))
    view = _View(fleet, market, settings, now_s, {machine.pool for machine in late if machine.market == SPOT})
    hedge = min(view.hedge(target), view.most_on_demand)
    floor = max(min(settings.min_on_demand, view.most_on_demand), hedge)
    most = max(0, target - floor if settings.max_spot is None else min(target - floor, settings.max_spot))
    reserve = min(math.ceil(0.1 * most), round(most * risk.lost_per_start(market.observed, settings.cold_start_s)))
    standing = fleet.count(ON_DEMAND, "ready")
    spot, asked = view.spread(most + reserve, keep=target - standing)
    need, ready, coming = view.need(target, most), min(sum(view.ready.values()), most + reserve), view.trusted()
    wanted = max(
        floor,
        need - ready - coming - asked,  # what spot will not cover
        min(standing, need - ready),  # those that serve stay until spot does
        min(standing + fleet.count(ON_DEMAND, "starting"), need - ready - coming),  # those that start, until spot has been granted
    )
    on_demand = min(wanted, view.most_on_demand)
    reasons = [f"target {target}: {ready} spot ready, {coming} coming from calm pools, {asked} asked of them; {on_demand} on demand"]
    if reserve:
        reasons.append(f"{reserve} more on spot, for those that the market takes one by one")
    if hedge:
        reasons.append(f"{hedge} on demand stand by: the spot machines are in too few pools, and these have not been calm for long")
    if need < target:
        reasons.append(f"on demand stands in for {need} of {target}: the headroom is bought on spot alone")
    if wanted > on_demand:
        reasons.append(f"{wanted} would be wanted on demand: the quota is {on_demand}")
    if late:
        reasons.append(f"{len(late)} have been starting for more than {OVERDUE * settings.cold_start_s:.0f} s: they are not coming")
    return Plan(spot, on_demand, (*(m.machine_id for m in late), *surplus(fleet, spot, on_demand)), tuple(reasons))


def overdue(fleet: Fleet, settings: PlacementSettings, now_s: float) -> tuple[Machine, ...]:
    """The machines that have been starting for too long to be counted on: given up, and to be observed as refused by their pools."""
    if not fleet.count(SPOT, "starting") + fleet.count(ON_DEMAND, "starting"):
        return ()
    since_s = now_s - OVERDUE * settings.cold_start_s
    return tuple(machine for machine in fleet.machines if machine.state == "starting" and machine.since_s < since_s)


def drain_at(notice_s: float, deadline_s: float, settings: PlacementSettings) -> float:
    """When (unix seconds) to drain a machine that learned at `notice_s` that it goes at `deadline_s`; infinity: at some time, no one knows
    when. Never before the notice; at once where that leaves no more than the lead, or where no deadline was given.

    >>> drain_at(1000.0, 1120.0, PlacementSettings(drain_lead_s=30.0))
    1090.0
    >>> drain_at(1000.0, 1020.0, PlacementSettings(drain_lead_s=30.0))
    1000.0
    """
    return max(notice_s, deadline_s - settings.drain_lead_s) if math.isfinite(deadline_s) else notice_s


def warns(notice_s: float, settings: PlacementSettings) -> bool:
    """Whether a notice of so many seconds is early enough: whoever comes from the drain on still waits when the replacement serves.

    >>> warns(120.0, PlacementSettings(cold_start_s=183.0)), warns(30.0, PlacementSettings(cold_start_s=183.0))
    (True, False)
    """
    return settings.cold_start_s - max(0.0, notice_s - settings.drain_lead_s) <= settings.patience_s


def fitted(
    settings: PlacementSettings, *, utilization: float, cold_start_s: float | None = None, patience_s: float | None = None
) -> PlacementSettings:
    """With what others have settled: the autoscaler's utilization, and where they are known the cold start that was measured and the time
    after which a waiting request is given up."""
    return replace(
        settings,
        utilization=utilization,
        cold_start_s=settings.cold_start_s if cold_start_s is None else cold_start_s,
        patience_s=settings.patience_s if patience_s is None else patience_s,
    )


class _View:
    """What `place` asks of the fleet and the market."""

    def __init__(self, fleet: Fleet, market: Market, settings: PlacementSettings, now_s: float, late: Set[Pool]) -> None:
        self.settings, self.now_s, self.seen, self.offers = settings, now_s, market.observed, _worthwhile(market)
        self.ready, self.starting = fleet.by_pool(SPOT, "ready"), fleet.by_pool(SPOT, "starting")
        self.held, self._leaving = fleet.by_pool(SPOT, "ready", "starting"), fleet.by_pool(SPOT, "draining")
        self.price_share, self.most_on_demand = _price_share(market), _most(market.on_demand())
        self.calm = [o.pool for o in self.offers if o.pool in self.held and self._calm_for(o.pool, settings.calm_s)]
        self.open = [o.pool for o in self.offers if not (self._doomed(o.pool) or self._refused(o.pool, 1) or o.pool in late)]
        self._generous = [pool for pool in self.calm if not self._refused(pool, GENEROUS) and pool not in late]

    def _calm_for(self, pool: Pool, seconds: float) -> bool:
        since_s = self.seen.of(pool).calm_since_s
        return since_s is not None and self.now_s - since_s >= seconds

    def _refused(self, pool: Pool, times: float) -> bool:
        return _within(times * self.settings.retry_refused_s, self.seen.of(pool).last_refused_s, self.now_s)

    def _doomed(self, pool: Pool) -> bool:
        """Whether machines there have been given notice and are not gone yet: what is asked for now would go with them."""
        return pool in self._leaving and _within(self.settings.calm_s, self.seen.of(pool).last_lost_s, self.now_s)

    def quiet(self) -> bool:
        """Whether there has been no shortage of late, so that there is no queue to be served."""
        return not _within(self.settings.calm_s, self.seen.last_short_s, self.now_s)

    def need(self, target: int, spot: int) -> int:
        """How many replicas on-demand machines make up for where spot is short. After a shortage all: there is a queue to be served."""
        whole = not self.quiet() or not self.offers or not spot
        return target if whole else math.ceil(target * self.settings.on_demand_share - 1e-9)

    def trusted(self) -> int:
        """Machines that are starting in pools that have been calm and gave what was asked."""
        return sum(number for pool, number in self.starting.items() if pool in self._generous)

    def hedge(self, target: int) -> int:
        """On-demand machines that stand by, so that what is left after the worst collapse to be feared survives it."""
        settings, share = self.settings, self.settings.survival_share * target
        if not self.offers or settings.max_spot == 0:
            return 0
        total = sum(self.ready.values())
        short = {pool: share - (total - number) for pool, number in self.ready.items() if share > total - number}
        if self.ready and not short:
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
        young = share * ages.get(0, 0.0)  # spot comes back, if at all, as young as can be
        return max(0, min(math.ceil(max(feared, default=young)), target - 1))

    def spread(self, count: int, *, keep: int) -> tuple[dict[Pool, int], int]:
        """Spot machines by pool, `count` in all; and how many of the new ones will be there, as far as one can tell. Of those that serve
        at least `keep` stay."""
        plan, total, asked = dict(self.held), sum(self.held.values()), 0
        sure = [pool for pool in self.calm if pool in self.open]
        if count > total:
            before = sum(plan.get(pool, 0) for pool in sure)
            fill(plan, sure, count - total, self._quota)
            fill(plan, self.open, count - sum(plan.values()), self._quota)
            if self.quiet() and set(sure) <= set(self._generous):
                asked = sum(plan.get(pool, 0) for pool in sure) - before
        elif len(plan) > 1:  # enough, but unevenly spread: more where there is little; the surplus goes once that serves
            for pool in sure:
                plan[pool] = max(plan[pool], min(count // len(plan), self._quota(pool)))
        probes = max(count // 10, 1 if len(plan) == 1 else 0) if min(count, max(plan.values(), default=0)) > 1 else 0
        for pool in [pool for pool in self.open if not plan.get(pool) and self._quota(pool)][:probes]:
            plan[pool] = 1  # it serves, and it shows whether the pool is worth more; where most are, one goes for it
        self._shrink(plan, sum(self.ready.values()) - max(count, keep))
        return plan, asked

    def _quota(self, pool: Pool) -> int:
        return next((o.max_replicas for o in self.offers if o.pool == pool and o.max_replicas is not None), 10**9)

    def _shrink(self, plan: dict[Pool, int], spare: int) -> None:
        """Give up ready machines that are not needed, where most are: the pool whose loss would hurt most; the costlier among equals."""
        rank = {offer.pool: index for index, offer in enumerate(self.offers)}
        for _ in range(min(spare, sum(plan.values()))):
            plan[max(plan, key=lambda pool: (plan[pool], rank.get(pool, len(rank))))] -= 1


def _within(seconds: float, at_s: float | None, now_s: float) -> bool:
    return at_s is not None and now_s - at_s < seconds


def _most(offers: tuple[Offer, ...]) -> int:
    """How many machines these quotas allow."""
    return sum(10**9 if offer.max_replicas is None else offer.max_replicas for offer in offers)


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
