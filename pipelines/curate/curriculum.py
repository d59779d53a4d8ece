"""The order in which documents are trained on: by difficulty, as fast as a pacing function admits it.

Promise: an order is a permutation that depends on the documents' ids, difficulties and sizes, the settings and the seed alone.
With pacing, whatever is drawn when a share t of the corpus has been trained on is no harder than the easiest c(t) of it, and is
drawn at random from what is left of that; c is the competence of Platanios et al. 2019 (arXiv 1903.09848), linear or the root.
Their sampling is with replacement over many epochs; here every document comes exactly once. Price: a heap, some 2 µs a document.
"""

from __future__ import annotations

import heapq
from typing import Literal

import numpy as np

from pipelines.curate.resample import Floats, Ids, uniform
from pipelines.curate.spans import Ints

__all__ = ["Pacing", "competence", "ranks"]

Pacing = Literal["sorted", "linear", "root"]

_POWER = {"linear": 1.0, "root": 2.0}


def competence(pacing: Pacing, start: float, full: float, progress: float) -> float:
    """The share of the corpus, easiest first, that is admitted once a share `progress` of it has been trained on.

    `start` at the beginning, all of it from `full` on: ((1 - start^p) x progress / full + start^p)^(1/p), with p = 1 for linear and
    2 for the root, which spends longer on what is newly admitted when that is a smaller part. Sorted admits only the next.

    >>> [round(competence("root", 0.1, 0.5, t), 2) for t in (0.0, 0.125, 0.25, 0.5, 1.0)]
    [0.1, 0.51, 0.71, 1.0, 1.0]
    """
    if pacing == "sorted":
        return progress
    if progress >= full:
        return 1.0
    power = _POWER[pacing]
    grown: float = ((1.0 - start**power) * progress / full + start**power) ** (1.0 / power)
    return min(1.0, grown)


def ranks(difficulty: Floats, ids: Ids, sizes: Ints, *, pacing: Pacing, start: float, full: float, seed: int) -> Ints:
    """Each document's place in the order of training [n], from 0.

    `sizes` [n]: characters or tokens, of which shares are taken. Equal difficulties are ordered by id.

    >>> ranks(np.array([3.0, 1.0, 2.0]), [b"0" * 32] * 3, np.array([1, 1, 1]), pacing="sorted", start=0.1, full=0.5, seed=0).tolist()
    [2, 0, 1]
    """
    easiest = np.lexsort((np.asarray(ids), difficulty))
    sequence = easiest
    if pacing != "sorted":
        drawn = uniform([ids[place] for place in easiest.tolist()], seed).tolist()
        sequence = easiest[_paced(drawn, sizes[easiest].tolist(), pacing, start, full)]
    found = np.empty(len(sequence), np.int64)
    found[sequence] = np.arange(len(sequence))
    return found


def _paced(drawn: list[float], sizes: list[int], pacing: Pacing, start: float, full: float) -> list[int]:
    """Places of the documents, given easiest first: at each step the least drawn number among those that are admitted."""
    upto = np.cumsum(sizes).tolist()
    total = max(1, sum(sizes))
    admitted: list[tuple[float, int]] = []
    order: list[int] = []
    known = done = 0
    while len(order) < len(sizes):
        limit = competence(pacing, start, full, done / total) * total
        while known < len(sizes) and (upto[known] <= limit or not admitted):
            heapq.heappush(admitted, (drawn[known], known))
            known += 1
        _, place = heapq.heappop(admitted)
        order.append(place)
        done += sizes[place]
    return order
