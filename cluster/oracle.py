"""What one who knows the future would pay: the bound beside every comparison.

Promise: no policy that serves everything can cost less than the oracle without headroom, which pays for the load itself, machine by
machine, spot whenever it could be had, with no cold start. The one with headroom holds the autoscaler's
target: what is above it is friction.
Price: vectors, milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from cluster.demand import BIN_S, MINUTE_BINS, Demand, Replica
from cluster.replay import MarketRules, Replay
from cluster.traces import SpotTrace

__all__ = ["oracle_cost"]


def oracle_cost(
    traces: Sequence[SpotTrace],
    on_demand: Replay,
    demand: Demand,
    replica: Replica,
    rules: MarketRules,
    machines_each: Callable[[SpotTrace], float],
) -> tuple[float, float]:
    """Cost as a share of the all-on-demand run: holding its target; and holding no more than the load itself needs."""
    minutes = np.arange(0.0, demand.end_s, MINUTE_BINS * BIN_S)
    capacity = sum((np.floor(trace.at(minutes) * machines_each(trace) + 1e-9) for trace in traces), np.zeros_like(minutes))
    seen = np.asarray([(sample.at_s, sample.target) for sample in on_demand.samples], dtype=np.float64)
    target = seen[np.searchsorted(seen[:, 0], minutes, side="right") - 1, 1]
    tokens = np.add.reduceat(np.asarray(demand.tokens), np.arange(0, len(demand.tokens), MINUTE_BINS)) / (MINUTE_BINS * BIN_S)
    bare = tokens[: len(minutes)] / replica.tokens_per_s
    return _share(target, capacity, rules, on_demand.cost, demand), _share(bare, capacity, rules, on_demand.cost, demand)


def _share(need: npt.NDArray[np.float64], capacity: npt.NDArray[np.float64], rules: MarketRules, whole: float, demand: Demand) -> float:
    spot = np.minimum(need, capacity)
    hours = demand.end_s / 3600 / len(need)
    return float((spot * rules.spot_price + (need - spot) * rules.on_demand_price).sum() * hours / whole) if whole > 0 else 0.0
