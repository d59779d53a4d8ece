"""Several sources of sequences in given proportions: which of them each place of the global order takes, and which of its sequences.

Promise: a pure function of the weights, the sizes, the orders and the seed, so any number of workers and any interruption consume the
same; among the first n places every source has its share of them to within `DISCREPANCY`, whatever n; each source is taken in an order
of its own in its first epoch if it has one (a curriculum), later and otherwise in one drawn from the seed, and no sequence of it comes
again before all have come. Price: weights are rounded to ten-thousandths; one permutation per source and epoch.
Source: the interleaving is apportionment by the largest deficit, as elections and just-in-time schedules have it (Tijdeman 1980).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["DISCREPANCY", "Mixture", "epoch_order", "pattern_of"]

_PERIOD = 10_000
DISCREPANCY = 1.5
"""Sequences by which a source may be ahead of its share or behind it (the largest seen, over mixtures of 2 to 16 sources: 1.36)."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class Mixture:
    """Sources of `sizes` sequences, numbered through: those of the first come first."""

    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    """Shares of the sequences taken; they are scaled to a sum of 1."""
    orders: tuple[Ints | None, ...]
    """For each source the order of its first epoch, if it has one."""

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.weights):
            raise ValueError(f"mixture: {len(self.weights)} weights for {len(self.sizes)} sources of tokens; give one for each")
        if min(self.weights) / sum(self.weights) < 1 / _PERIOD:
            raise ValueError(f"mixture: weights {self.weights}; each must be at least a ten-thousandth of their sum")
        assert len(self.orders) == len(self.sizes)

    def at(self, places: Ints, seed: int) -> Ints:
        """The sequences at the given places of the global order [n].

        >>> mixture = Mixture((4, 2), (3.0, 1.0), (np.array([3, 2, 1, 0]), np.array([0, 1])))
        >>> mixture.at(np.arange(5), seed=0).tolist()
        [3, 2, 4, 1, 0]
        """
        pattern, counts = pattern_of(self.weights)
        periods, offsets = np.divmod(places, _PERIOD)
        chosen = pattern[offsets]
        draws = periods * counts[_PERIOD][chosen] + counts[offsets, chosen]
        found = np.empty(len(places), np.int64)
        starts = np.cumsum([0, *self.sizes])
        for number, size in enumerate(self.sizes):
            mine = chosen == number
            epochs, within = np.divmod(draws[mine], size)
            taken = np.empty(len(within), np.int64)
            for epoch in np.unique(epochs):
                order = self.orders[number]
                if epoch or order is None:
                    order = epoch_order(seed, int(epoch), size, number)
                taken[epochs == epoch] = order[within[epochs == epoch]]
            found[mine] = starts[number] + taken
        return found


@lru_cache(maxsize=8)
def epoch_order(seed: int, epoch: int, num_sequences: int, source: int = 0) -> Ints:
    """The order of an epoch, drawn from the seed."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch + (source << 32)])).permutation(num_sequences)


@lru_cache(maxsize=8)
def pattern_of(weights: Sequence[float]) -> tuple[Ints, Ints]:
    """(the source of each place of a period [10000], how often each source came before each place [10001, sources])."""
    shares = np.asarray(weights) / sum(weights)
    quotas = np.floor(shares * _PERIOD).astype(np.int64)
    most = np.argsort(quotas - shares * _PERIOD, kind="stable")
    quotas[most[: _PERIOD - quotas.sum()]] += 1
    pattern, counts = np.empty(_PERIOD, np.int64), np.zeros((_PERIOD + 1, len(shares)), np.int64)
    for place in range(_PERIOD):
        behind = quotas * (place + 1) - counts[place] * _PERIOD
        pattern[place] = np.argmax(np.where(counts[place] < quotas, behind, -_PERIOD * _PERIOD))
        counts[place + 1] = counts[place]
        counts[place + 1, pattern[place]] += 1
    return pattern, counts
