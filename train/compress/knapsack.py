"""Multiple-choice knapsack: one option per group, least total harm for every total cost at once.

Promise: `frontier` holds plans none of which is worse than another in both cost and harm; for any limit its plan costs at most
(groups × one cell) more than the best there is, and a looser limit never gives a costlier plan. Price: groups × options × cells
additions (42 matrices × 10 options: 30 ms), and groups × cells bytes. Source: Dudziński and Walukiewicz (1987) for the problem;
the dynamic programme is the textbook's, over rounded costs, with the exact costs and harms of what it chose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Frontier", "frontier"]

Floats = NDArray[np.float64]
CELLS = 16_384
"""Costs are told apart down to this share of their range."""


@dataclass(frozen=True, slots=True)
class Frontier:
    """Plans from the costliest, which harms least, to the cheapest, which harms most."""

    costs: Floats
    """[P], falling."""
    harms: Floats
    """[P], rising."""
    choices: NDArray[np.int16]
    """[P, groups]: the option that each plan takes of each group."""

    def within_harm(self, limit: float) -> int | None:
        """The index of the cheapest plan with at most this harm; None when even the least harmful has more.

        >>> two = frontier([[(8, 0.0), (4, 1.0)], [(8, 0.0), (4, 3.0), (2, 3.5)]])
        >>> two.choices[two.within_harm(2.0)].tolist(), two.choices[two.within_harm(3.7)].tolist(), two.within_harm(-1)
        ([1, 0], [0, 2], None)
        """
        count = int(np.searchsorted(self.harms, limit, side="right"))
        return count - 1 if count else None

    def within_cost(self, limit: float) -> int | None:
        """The index of the least harmful plan that costs at most this much; None when even the cheapest costs more."""
        index = int(np.searchsorted(-self.costs, -limit, side="left"))
        return index if index < len(self.costs) else None


def frontier(groups: Sequence[Sequence[tuple[float, float]]], *, cells: int = CELLS) -> Frontier:
    """The plans that are worth having, each group's options given as (cost, harm), both finite and of any unit."""
    assert groups, "nothing to choose"
    assert all(groups), "a group without an option has no plan"
    costs, harms = ([np.array([option[part] for option in group], dtype=np.float64) for group in groups] for part in (0, 1))
    assert all(np.isfinite(each).all() for each in (*costs, *harms))
    cell = max(sum(float(np.ptp(each)) for each in costs) / cells, 1e-300)
    steps = [np.rint((each - each.min()) / cell).astype(np.int64) for each in costs]
    least, taken = np.zeros(1), []
    for step, harm in zip(steps, harms, strict=True):
        least, chosen = _joined(least, step, harm)
        taken.append(chosen)
    picked = _traced(np.flatnonzero(np.isfinite(least)), steps, taken)
    return _worth_having(_totals(costs, picked), _totals(harms, picked), picked)


def _totals(parts: Sequence[Floats], picked: NDArray[np.int16]) -> Floats:
    """[P]: each plan's sum, exact where the programme's cells are not."""
    totals: Floats = np.stack([part[picked[:, group]] for group, part in enumerate(parts)]).sum(axis=0)
    return totals


def _joined(least: Floats, steps: NDArray[np.int64], harms: Floats) -> tuple[Floats, NDArray[np.int16]]:
    """Least harm by cost cell with one more group, and the option of it that gives that."""
    found = np.full(len(least) + int(steps.max()), np.inf)
    chosen = np.zeros(len(found), dtype=np.int16)
    for option, (step, harm) in enumerate(zip(steps, harms, strict=True)):
        here = slice(int(step), int(step) + len(least))
        better = least + harm < found[here]
        found[here][better] = (least + harm)[better]
        chosen[here][better] = option
    return found, chosen


def _traced(ends: NDArray[np.int64], steps: Sequence[NDArray[np.int64]], taken: Sequence[NDArray[np.int16]]) -> NDArray[np.int16]:
    """[P, groups]: the options that led to each of the cells `ends`."""
    picked, at = np.zeros((len(ends), len(steps)), dtype=np.int16), ends.copy()
    for group in range(len(steps) - 1, -1, -1):
        picked[:, group] = taken[group][at]
        at = at - steps[group][picked[:, group]]
    return picked


def _worth_having(costs: Floats, harms: Floats, picked: NDArray[np.int16]) -> Frontier:
    order = np.lexsort((harms, costs))  # cheapest first; of equal costs the least harmful first
    best = np.minimum.accumulate(np.concatenate([[np.inf], harms[order][:-1]]))
    kept = order[harms[order] < best][::-1]
    return Frontier(costs[kept], harms[kept], picked[kept])
