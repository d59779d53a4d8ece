"""Which documents fit a budget: importance resampling, a share of the best, and those that cover the others.

Promise: a document's key depends on its id, its score and the seed alone, so the choice is a function of the set of documents:
not of their order, their pieces or how often a task is retried. Price: `cover` holds one matrix of a block's similarities.
After: DSIR (arXiv 2302.03169) for the weights and the Gumbel top-k trick (Kool et al. 2019, arXiv 1903.06059): the k largest of
log weight + Gumbel noise are k documents drawn without replacement with probability as their weights; facility location with
lazy evaluation (Minoux 1978), in blocks as GreeDi's first round does (Mirzasoleiman et al. 2013).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pipelines.curate.spans import Bools, Ints, mix

__all__ = ["best_within", "blocks", "cover", "gumbel", "log_ratios", "parts_of", "uniform"]

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.bytes_] | Sequence[bytes]


def log_ratios(target: Ints, raw: Ints, prior: float) -> Floats:
    """log p(feature | target) - log p(feature | raw) of each bucket, from the counts [buckets] of both; 0 where raw has none.

    The target's counts are smoothed by `prior` features distributed as the raw ones are: what a small target says nothing about is
    worth about nothing, not minus infinity. The raw documents' mean weight is never above 0 (Gibbs), so one above 0 means something.

    >>> log_ratios(np.array([8, 0, 1]), np.array([49, 49, 0]), 2.0).round(2).tolist()
    [0.49, -1.7, 0.0]
    """
    seen = raw > 0
    among = raw[seen] / max(1, int(raw.sum()))
    ratios: Floats = np.zeros(raw.size)
    ratios[seen] = np.log((target[seen] + prior * among) / (int(target.sum()) + prior) / among)
    return ratios


def uniform(ids: Ids, seed: int) -> Floats:
    """A number strictly between 0 and 1 for each id (of 32 hex digits), as if drawn, always the same for a seed.

    >>> uniform([b"0" * 32, b"1" * 32], 7).tolist() == uniform([b"0" * 32, b"1" * 32], 7).tolist()
    True
    """
    halves = np.frombuffer(bytes.fromhex(b"".join(ids).decode()), ">u8").astype(np.uint64).reshape(-1, 2)
    key = mix(halves[:, 0] ^ mix(halves[:, 1] + mix(np.full(1, seed, np.int64).astype(np.uint64) + np.uint64(1))))
    found: Floats = ((key >> np.uint64(12)).astype(np.float64) + 0.5) / (1 << 52)
    return found


def gumbel(ids: Ids, seed: int) -> Floats:
    """Standard Gumbel noise for each id."""
    found: Floats = -np.log(-np.log(uniform(ids, seed)))
    return found


def best_within(keys: Floats, ids: Ids, sizes: Ints, budget: int) -> Bools:
    """The documents of the largest keys (ties by id) as long as their sizes fit the budget together; one at least.

    >>> best_within(np.array([1.0, 3.0, 2.0]), [b"a", b"b", b"c"], np.array([5, 5, 5]), 11).tolist()
    [False, True, True]
    """
    order = np.lexsort((np.asarray(ids), -keys))
    fits = np.cumsum(sizes[order]) <= budget
    fits[:1] = True
    chosen = np.zeros(len(keys), bool)
    chosen[order] = fits
    return chosen


def blocks(ids: Ids, most: int, seed: int) -> list[Ints]:
    """Places in blocks of at most `most` documents, of about one size, dealt out by the hash of their ids."""
    order = np.lexsort((np.asarray(ids), uniform(ids, seed)))
    return [part for part in np.array_split(order, max(1, -(-len(order) // most))) if part.size]


def parts_of(budget: int, sizes: Sequence[int]) -> list[int]:
    """The budget shared out in proportion to the sizes; the parts add up to it.

    >>> parts_of(10, [3, 3, 6])
    [2, 3, 5]
    """
    upto = [budget * int(total) // max(1, int(sum(sizes))) for total in np.cumsum([0, *sizes])]
    return [end - begin for begin, end in pairwise(upto)]


def cover(vectors: npt.NDArray[np.float32], weights: Floats, sizes: Ints, budget: int) -> list[int]:
    """Places of documents that fit the budget and cover all of them: facility location, chosen greedily.

    `vectors` [n, d] of length 1, `weights` [n] how much it matters that a document has one like it among the chosen. Each choice
    adds the most of Σ weight x (largest similarity to a chosen one) for its size; the earlier place wins a tie.

    >>> two_groups = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    >>> cover(two_groups, np.ones(4), np.ones(4, np.int64), 2)
    [0, 3]
    """
    alike = np.clip(vectors @ vectors.T, 0.0, 1.0) * weights[:, None].astype(np.float32)  # [whom, by whom]
    covered = np.zeros(len(vectors), np.float32)
    gains = [(-float(gain) / max(1, int(sizes[i])), i, 0) for i, gain in enumerate(alike.sum(axis=0, dtype=np.float64))]
    heapq.heapify(gains)
    chosen: list[int] = []
    left = budget
    while gains:
        _, place, known = heapq.heappop(gains)
        if sizes[place] > left:
            continue
        if known < len(chosen):  # an upper bound: what it adds only falls as others are chosen
            fresh = np.maximum(alike[:, place] - covered, 0.0).sum(dtype=np.float64)
            heapq.heappush(gains, (-float(fresh) / max(1, int(sizes[place])), place, len(chosen)))
            continue
        chosen.append(place)
        left -= int(sizes[place])
        covered = np.maximum(covered, alike[:, place])
    return chosen
