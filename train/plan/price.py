"""What a run costs on demand and on spot, what failures and preemptions are expected to take of it, and how often to save.

Promise: every term is a product of stated rates. A preemption that is announced costs two restarts (fewer machines, then as many again)
and the missing machine's share of the wait; a failure that is not costs half an interval between checkpoints besides. Price: none.
Sources: the interval is Young's (1974), √(2·C·M), with M the time between *unannounced* failures of the whole cluster, since what is
announced is saved in time; Daly (2006) for when it must not be below what a checkpoint takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from train.plan.laws import Interval
from train.plan.machine import Machine

__all__ = ["UNPRICED", "Bill", "Market", "Rates", "Tariff", "bill", "failures_per_hour", "lost", "save_interval_s"]

LONGEST_INTERVAL_S = 3600.0  # however rare failures are, people interrupt runs too
_PRICE_SPREAD = {"on-demand": 0.02, "spot": 0.3}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """How often the market takes a spot machine, and what that takes."""

    preemptions_per_hour: float = 0.05
    """Of one spot machine: one in twenty hours, between calm zones and the worst recorded ones."""
    unannounced_share: float = 0.05
    """Of preemptions, those whose notice does not come in time."""
    restart_s: float = 60.0
    """A group of workers starts again: processes, imports, the checkpoint is read."""
    replacement_s: float = 300.0
    """Until another machine is there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tariff:
    """Dollars an hour for all machines together."""

    on_demand: float
    spot: float
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Market:
    """Where the machines are bought."""

    kind: str = "on-demand"
    rates: Rates = Rates()
    tariff: Tariff | None = None
    """None where nobody knows what they cost."""


UNPRICED = Market()


@dataclass(frozen=True, kw_only=True, slots=True)
class Bill:
    """A run on one market."""

    hours: Interval
    """Wall time, losses included."""
    dollars: Interval | None
    """None where nobody knows what the machines cost."""
    lost_share: float
    """Of the undisturbed time, spent again: work done twice, restarts, waiting."""
    interruptions: float
    """Expected."""


def failures_per_hour(machine: Machine, market: Market, kind: str | None = None) -> float:
    """Of the whole cluster, unannounced: hardware's, and on spot those of the market that came without warning."""
    spot = market.rates.preemptions_per_hour * market.rates.unannounced_share if (kind or market.kind) == "spot" else 0.0
    return machine.num_machines * (1 / machine.failure_hours + spot)


def save_interval_s(pause_s: float, write_s: float, machine: Machine, market: Market) -> float:
    """Seconds between checkpoints that waste least, each pausing the run for `pause_s`, and no shorter than one takes to write.

    >>> from train.plan.rented import rented
    >>> from train.plan.catalogue import fleet_of, read_catalogue
    >>> machine = rented(fleet_of("8xH100", read_catalogue()), vocab_size=50_000, sequence_length=2048)
    >>> round(save_interval_s(0.1, 9.0, machine, Market()))
    2130
    """
    between = 3600 / failures_per_hour(machine, market)
    return max(write_s, min(math.sqrt(2 * pause_s * between), LONGEST_INTERVAL_S))


def lost(machine: Machine, market: Market, kind: str, interval_s: float) -> tuple[float, float, float]:
    """(share of the time lost, share of it that is paid for, interruptions an hour) on a market of that kind."""
    rates, failures = market.rates, failures_per_hour(machine, market, kind)
    noticed = machine.num_machines * rates.preemptions_per_hour * (1 - rates.unannounced_share) if kind == "spot" else 0.0
    paid = failures * (interval_s / 2 + 2 * rates.restart_s) + noticed * 2 * rates.restart_s
    waiting = (noticed + failures) * rates.replacement_s / machine.num_machines
    return (paid + waiting) / 3600, paid / 3600, failures + noticed


def bill(seconds: Interval, interval_s: float, machine: Machine, market: Market, kind: str) -> Bill:
    """What `seconds` of undisturbed training become, and cost, on demand or on spot."""
    share, paid, rate = lost(machine, market, kind, interval_s)
    wide = _widened(seconds, 1 + share)
    hours = Interval(wide.value / 3600, wide.low / 3600, wide.high / 3600)
    if market.tariff is None:
        return Bill(hours=hours, dollars=None, lost_share=share, interruptions=rate * hours.value)
    per_hour = market.tariff.spot if kind == "spot" else market.tariff.on_demand
    spread, cost = _PRICE_SPREAD[kind], _widened(seconds, 1 + paid)
    low, value, high = (each / 3600 * per_hour for each in (cost.low, cost.value, cost.high))
    dollars = Interval(value, low * (1 - spread), high * (1 + spread))
    return Bill(hours=hours, dollars=dollars, lost_share=share, interruptions=rate * hours.value)


def _widened(seconds: Interval, factor: float) -> Interval:
    """Longer by a factor that may be half or twice as much beyond one."""
    return Interval(seconds.value * factor, seconds.low * (1 + (factor - 1) / 2), seconds.high * (1 + (factor - 1) * 2))
