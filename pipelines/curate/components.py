"""Who is compared with whom, in what order, and who stays: the rule of near-duplicates, without any I/O.

The rule: in survivor order (longest first, ties by id) a document is dropped if and only if one of its candidates that is
already kept has Jaccard similarity >= t with it. Candidates share the value of at least one band. Connected components of
the candidates only partition the work: the rule gives the same verdicts inside a component as over everything, because a
document's candidates are all in its own. So no chain a~b~c ever drops c for being like b once b is gone.
Price: linear in documents x bands, and in a bucket each newcomer is compared with the kept ones only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipelines.curate.minhash import jaccard
from pipelines.curate.spans import U64, Bools, Ints, repeats

__all__ = ["Duplicate", "components", "copies", "near_duplicates", "partitions", "survivor_order"]


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A dropped document, by its place in the sequence that was judged."""

    place: int
    kept: int
    """Place of the kept document that it repeats."""
    similarity: float
    """Their exact Jaccard similarity."""


def survivor_order(num_chars: Ints, ids: Sequence[str] | npt.NDArray[np.str_]) -> Ints:
    """Places in the order in which documents claim their place: longest first, ties by id.

    >>> survivor_order(np.array([5, 9, 5]), ["b", "c", "a"]).tolist()
    [1, 2, 0]
    """
    return np.lexsort((np.asarray(ids), -np.asarray(num_chars)))


def copies(digests: npt.NDArray[np.void]) -> Ints:
    """For each document, in survivor order, the first document that has its digest: itself, if it is the first."""
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    found: Ints = first[inverse]
    return found


def components(bands: U64, comparable: Bools) -> Ints:
    """The component of each document [n], numbered from 0; a document that is nobody's candidate has -1.

    `bands` [n, b] holds each document's band values; rows where `comparable` is false are left out. A bucket of m documents
    needs m - 1 edges, each to its first, so giant buckets cost no more than their size.
    """
    members = np.flatnonzero(comparable)
    edges = [_star_edges(bands[members, band]) for band in range(bands.shape[1])]
    left, right = np.concatenate([e[0] for e in edges]), np.concatenate([e[1] for e in edges])
    graph = coo_array((np.ones(left.size, np.int8), (left, right)), shape=(members.size, members.size))
    label = connected_components(graph, directed=False)[1].astype(np.int64)
    label[np.bincount(label, minlength=1)[label] == 1] = -1
    found = np.full(comparable.size, -1, np.int64)
    found[members] = np.unique(label, return_inverse=True)[1] - (1 if (label < 0).any() else 0)
    return found


def partitions(component: Ints, weight: Ints, most: int) -> Ints:
    """For each document a partition, whole components together, each about as heavy as `most` or one component; -1 stays -1."""
    inside = component >= 0
    heavy = np.bincount(component[inside], weight[inside])
    number: Ints = ((np.cumsum(heavy) - heavy) // most).astype(np.int64)
    found = np.full(component.size, -1, np.int64)
    found[inside] = number[component[inside]]
    return found


def near_duplicates(bands: U64, grams: Callable[[int], U64], threshold: float) -> list[Duplicate]:
    """The rule, over documents 0..n-1 given in survivor order: who is dropped, and for whom.

    `bands` [n, b]; `grams(i)` the set of document i, sorted and without repeats. Of several kept documents that are similar
    enough the first in survivor order is named.
    """
    kept_with: dict[tuple[int, int], list[int]] = defaultdict(list)
    dropped: list[Duplicate] = []
    for place, values in enumerate(bands.tolist()):
        buckets = [kept_with[key] for key in enumerate(values)]
        duplicate = _first_similar(place, sorted(set().union(*buckets)), grams, threshold)
        if duplicate is not None:
            dropped.append(duplicate)
            continue
        for bucket in buckets:
            bucket.append(place)
    return dropped


def _first_similar(place: int, candidates: list[int], grams: Callable[[int], U64], threshold: float) -> Duplicate | None:
    for kept in candidates:
        ours, theirs = grams(place), grams(kept)
        if min(ours.size, theirs.size) / max(ours.size, theirs.size, 1) < threshold:
            continue  # even if the smaller were a part of the larger
        similarity = jaccard(ours, theirs)
        if similarity >= threshold:
            return Duplicate(place, kept, similarity)
    return None


def _star_edges(values: U64) -> tuple[Ints, Ints]:
    """An edge from each document whose value stood before to the first that has it."""
    again, first, _ = repeats(values)
    if not again.any():
        return first[:0], first[:0]
    known = np.argsort(values[first])
    right = np.flatnonzero(again)
    return first[known][np.searchsorted(values[first][known], values[right])], right
