"""Ratios that a busy machine does not spoil, and how sure they are.

Promise: a ratio is taken within a round (or a prompt), where both sides met the same machine; the centre is the median over rounds, the
interval a percentile bootstrap that draws rounds with replacement, seeded, so the same figures give the same interval. Pure.
Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Interval", "interval", "percentile", "ratio_of_rates", "ratio_of_rounds"]

RESAMPLES = 4000


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def interval(items: int, of: Callable[[np.ndarray], float], seed: int = 0) -> Interval:
    """The bootstrap interval of `of(indices)` over `items` things drawn with replacement."""
    rng = np.random.default_rng(seed)
    drawn = [of(rng.integers(0, items, items)) for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(of(np.arange(items)), float(low), float(high))


def ratio_of_rounds(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """The median of ratios within rounds, drawing rounds.

    >>> str(ratio_of_rounds([2.0, 4.0, 2.0], [1.0, 2.0, 1.0]))
    '2.00 (2.00 to 2.00)'
    """
    ratios = np.asarray(ours) / np.asarray(theirs)
    return interval(len(ratios), lambda i: float(np.median(ratios[i])))


def ratio_of_rates(
    ours: Sequence[tuple[float, float]], theirs: Sequence[tuple[float, float]], clusters: Sequence[int] | None = None
) -> Interval:
    """(Σ amount ÷ Σ seconds) of ours ÷ that of theirs, over pairs of (amount, seconds), drawing pairs: a paired bootstrap.

    With `clusters` (which one each pair belongs to, say whose processes made it), clusters are drawn first and pairs within them.

    >>> ratio_of_rates([(30, 1.0), (10, 1.0)], [(30, 2.0), (10, 2.0)]).value
    2.0
    """
    a, b = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)

    def ratio(i: np.ndarray) -> float:
        (made, seconds), (their_made, their_seconds) = a[i].sum(0), b[i].sum(0)
        return float(made / seconds / (their_made / their_seconds))

    if clusters is None:
        return interval(len(a), ratio)
    rng = np.random.default_rng(1)
    members = [np.flatnonzero(np.asarray(clusters) == name) for name in sorted(set(clusters))]

    def ratio_of_clusters(drawn: np.ndarray) -> float:
        return ratio(np.concatenate([rng.choice(members[i], len(members[i])) for i in drawn]))

    found = interval(len(members), ratio_of_clusters)
    return Interval(ratio(np.arange(len(a))), found.low, found.high)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` percent of the values lie; nan for none."""
    return float(np.percentile(values, share)) if len(values) else float("nan")
