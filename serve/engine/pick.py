"""Drawing one token from a row of logits on the CPU: float64 only over what may be drawn, no sort of the vocabulary.

Promise: the token that `distribution.py` draws, for every option (up to rounding of the last bit in a cumulative sum); a row's
token depends on that row alone. All options are thresholds on the logits, so what may be drawn is found by selection, and whatever ties
with the threshold is found too: the short cuts are exact, not approximate. Price: one pass of selection (top-k), or one exponential
per token of the vocabulary (otherwise); numpy, because torch's sorts and arguments of maxima are ten to twenty times slower here.
"""

from __future__ import annotations

from math import nextafter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.engine.request import COLDEST, Sampling

__all__ = ["pick", "reach"]

Row = NDArray[Any]
_FOLD = 64
"""Rows of the grid that a long row of logits is folded into, to look at the columns' peaks first."""
_NUCLEUS = (128, 2048)
"""Numbers of likeliest tokens among which the top-p set is looked for first."""
_BLOCK = 256
"""Weights summed as one before the block that holds the drawn token is looked through."""


def pick(row: Row, top: float, sampling: Sampling, uniform: float) -> int:
    """The token that a number in (0, 1) stands for. row [vocab] float32 or float64, its highest value `top`, temperature above 0."""
    tokens: Row | None = None
    if 0 < sampling.top_k < len(row):
        tokens = reach(row, sampling.top_k)
        row = row[tokens]
    weights = row.astype(np.float64)
    weights -= top
    weights *= 1.0 / max(sampling.temperature, COLDEST)
    np.exp(weights, out=weights)  # the likeliest token's is 1
    if sampling.top_p < 1.0:
        kept = _nucleus(row, weights, sampling.top_p)
        if kept is not None:
            weights, tokens = weights[kept], kept if tokens is None else tokens[kept]
    if sampling.min_p > 0.0:
        weights[weights < sampling.min_p] = 0.0
    at = _invert(weights, uniform)
    return at if tokens is None else int(tokens[at])


def reach(row: Row, count: int) -> Row:
    """The indices, ascending, of all values that are no less than the count-th largest.

    A long row is folded into a grid. The count-th largest of the columns' peaks is a lower bound, because each of those columns
    has a value that reaches it; so only columns whose peaks reach it can hold what is looked for, ties included.

    >>> reach(np.array([3.0, 1.0, 2.0, 2.0]), 2).tolist()
    [0, 2, 3]
    """
    width = len(row) // _FOLD
    if width < 4 * count:
        return np.flatnonzero(row >= _largest(row, count))
    grid = row[: width * _FOLD].reshape(_FOLD, width)
    peaks = grid.max(0)
    columns = np.flatnonzero(peaks >= _largest(peaks, count))
    rest = np.arange(width * _FOLD, len(row))
    tokens = np.concatenate([(np.arange(_FOLD)[:, None] * width + columns).ravel(), rest])
    values = np.concatenate([grid[:, columns].ravel(), row[rest]])
    return tokens[values >= _largest(values, count)]


def _largest(values: Row, count: int) -> Any:
    """The count-th largest value."""
    at = len(values) - count
    return np.partition(values, at)[at]


def _nucleus(row: Row, weights: Row, share: float) -> Row | None:
    """Keep the smallest set of the likeliest tokens that holds `share` of all weight; the others' weights become 0.

    Returns indices, ascending, outside of which nothing is kept; None if that is not known to be a small part.
    """
    mass = share * float(weights.sum())
    for size in _NUCLEUS:
        if size * 4 > len(row):
            break
        part = reach(row, size)  # what ties with its least member is in it, so it can be looked through alone
        among = weights[part]
        if among.sum() > mass * (1 + 1e-9):
            _cut(among, mass)
            weights[part] = among
            return part
    _cut(weights, mass)
    return None


def _cut(weights: Row, mass: float) -> None:
    """Set to 0 what has no less than `mass` of larger weights before it; of equals, the first come first."""
    ranked = np.sort(weights)[::-1]
    sums = np.cumsum(ranked)
    sums -= ranked
    count = max(1, int(np.searchsorted(sums, mass, side="left")))
    least = ranked[count - 1]
    if count < len(ranked) and ranked[count] == least:
        weights[np.flatnonzero(weights == least)[count - int(np.count_nonzero(weights > least)) :]] = 0.0
    weights *= weights >= least


def _invert(weights: Row, uniform: float) -> int:
    """The index at which the cumulative sum passes `uniform` of the whole sum: first by blocks, then in the one that has it."""
    size = len(weights)
    if size <= 2 * _BLOCK:
        return _search(weights, uniform * float(weights.sum()))
    whole = size - size % _BLOCK
    sums = np.add.reduce(weights[:whole].reshape(-1, _BLOCK), axis=1).cumsum()
    before = total = float(sums[-1])
    if whole < size:
        total += float(weights[whole:].sum())
    target, start = min(uniform * total, nextafter(total, 0.0)), whole
    if target < before:
        block = int(sums.searchsorted(target, side="right"))
        start, before = block * _BLOCK, float(sums[block - 1]) if block else 0.0
    return start + _search(weights[start : start + _BLOCK], target - before)


def _search(weights: Row, target: float) -> int:
    cumulative = weights.cumsum()
    inside = min(target, nextafter(float(cumulative[-1]), 0.0))  # so that what weighs nothing is never found
    return int(cumulative.searchsorted(inside, side="right"))
