"""What is feared, and what fear may cost: at which ages of a pool's calm on-demand machines stand by.

Promise: the hedge pays for itself. A pool that has just come back is many times as likely to collapse as one that has been calm for hours
(docs/spot.md); so machines stand by at the most dangerous ages first, for as long as the allowance lasts. The allowance is what this
placement has saved so far against SpotHedge's rule: on-demand machines that were not rented while spot machines of calm pools started, and
headroom that was not bought on demand. Price: sums over pools and ages, when a hedge is in question.
"""

from __future__ import annotations

from operator import mul

from cluster.market import CALM_S, Observations

__all__ = ["hedged_ages", "lost_per_start", "saved_share"]

PRIOR_HOURS = (0.5, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 4.0)
PRIOR_COLLAPSES = (0.5, 0.5, 0.5, 0.5, 0.5, 0.4, 0.25, 0.25)
"""What is believed of a pool by the ages of CALM_S before anything is seen: collapses, as if it had been watched for so many hours."""
NOTICED_READY_S = 60.0
"""How long it takes to see that a machine is ready, and to give back the one that bridged its start."""
QUIET_SHARE = 0.8
"""Share of the on-demand hours in which headroom was left out: after a loss it is not."""
FIRST_HOURS = 0.5
"""Hours that each age is taken to last at least: nothing is spent before something is known."""


def hedged_ages(seen: Observations, *, cost: float, saved: float, lost_s: float, allowed: float) -> dict[int, float]:
    """The ages of CALM_S that are worth a hedge, and how much of one: the most dangerous first, while the allowance lasts.

    `cost` of a standing hedge and `saved` so far are shares of what the fleet would cost on demand. A collapse without a hedge fails the
    requests of `lost_s` seconds; where the remaining ages are expected to fail no more than the share `allowed`, they go without.
    """
    hours, collapses, alone = list(PRIOR_HOURS), list(PRIOR_COLLAPSES), [FIRST_HOURS] * len(CALM_S)
    for record in seen.pools.values():
        for age in range(len(CALM_S)):
            hours[age] += record.hours[age]
            collapses[age] += record.collapses[age]
            alone[age] += record.alone[age]
    danger = [number / span for number, span in zip(collapses, hours, strict=True)]
    passed_h = max(seen.hours, sum(alone))
    found: dict[int, float] = {}
    left, failing = saved * passed_h, sum(map(mul, danger, alone)) * lost_s / 3600 / passed_h
    for age in sorted(range(len(CALM_S)), key=danger.__getitem__, reverse=True):
        if left <= 0 or failing <= allowed:
            break
        found[age] = min(1.0, left / (alone[age] * cost)) if cost > 0 else 1.0
        left -= alone[age] * cost
        failing -= danger[age] * alone[age] * lost_s / 3600 / passed_h
    return found


def saved_share(seen: Observations, *, cold_start_s: float, headroom: float) -> float:
    """What has been saved against SpotHedge, as a share of the fleet's on-demand cost.

    It rents an on-demand machine for each spot machine that is not ready yet; and `headroom` is what was left out on demand, except after
    losses.
    """
    hours = seen.spot_hours + seen.on_demand_hours
    bridged = seen.num_started * (cold_start_s + NOTICED_READY_S) / 3600
    return (bridged + seen.on_demand_hours * headroom * QUIET_SHARE) / hours if hours > 0 else 0.0


def lost_per_start(seen: Observations, cold_start_s: float) -> float:
    """Share of the spot machines that the market takes, one by one, while a replacement starts."""
    hours, lost = 100.0, 0.0  # as if a hundred machine-hours had passed without a loss
    for record in seen.pools.values():
        hours, lost = hours + record.machine_hours, lost + record.num_lost
    return lost / hours * cold_start_s / 3600
