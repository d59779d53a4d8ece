"""Who is compared with whom, in what order, and who stays: the rule of duplicates, without any I/O.

The rule: in survivor order (era, claim, id) a document is dropped if and only if one of its candidates that is already kept has
Jaccard similarity >= t with it, or the same digest. Candidates share the value of at least one band; of a band's bucket only the
first `limit` kept documents are candidates, which bounds what a giant bucket costs. Connected components of the candidates only
partition the work: the rule gives the same verdicts inside a component as over everything, because a document's candidates are
all in its own. So no chain a~b~c ever drops c for being like b once b is gone. A copy shares the fate of the first of its digest.
Price: linear in documents x bands, and each newcomer is compared with the kept ones of its buckets only.
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
from pipelines.curate.spans import U64, Bools, Ints, mix

__all__ = ["Candidates", "bucket_keys", "components", "copies", "duplicates_among", "star_edges", "survivor_order"]

_NO_WORDS = np.uint64(0x5851F42D4C957F2D)  # keys of documents without words are those of no band


@dataclass(frozen=True, slots=True)
class Candidates:
    """Documents to be judged, in survivor order; parallel arrays [n]."""

    bands: U64
    """MinHash band values [n, b]."""
    digest: npt.NDArray[np.void]
    """128-bit hash of the canonical text."""
    num_grams: Ints
    """Size of the set of shingles; one without any is compared by its digest only."""
    settled: Bools
    """Whether the document stays whatever else there is."""


def survivor_order(era: Ints, claim: npt.NDArray[np.float64], ids: Sequence[str] | npt.NDArray[np.bytes_]) -> Ints:
    """Places in the order in which documents claim their place: least era, then least claim, then least id.

    >>> survivor_order(np.array([1, 1, 0, 1]), np.array([-5.0, -9.0, -1.0, -5.0]), ["b", "c", "d", "a"]).tolist()
    [2, 1, 3, 0]
    """
    return np.lexsort((np.asarray(ids), claim, era))


def copies(digests: npt.NDArray[np.void]) -> Ints:
    """For each document, in survivor order, the first document that has its digest: itself, if it is the first."""
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    found: Ints = first[inverse]
    return found


def bucket_keys(bands: U64, digest: npt.NDArray[np.void], has_words: Bools) -> U64:
    """The keys [n, b] of the buckets that documents are in: candidates share one.

    A document with words is in a bucket for each of its bands, one without in that of its digest. Two buckets that share a
    key by chance share a component and nothing else.
    """
    keys = mix(bands + mix(np.arange(1, bands.shape[1] + 1, dtype=np.uint64)))
    halves = np.frombuffer(digest[~has_words].tobytes(), np.uint64).reshape(-1, 2)
    keys[~has_words] = mix(halves[:, 0] ^ mix(halves[:, 1] ^ _NO_WORDS))[:, None]
    return keys


def star_edges(keys: U64, places: Ints, newcomer: Bools) -> tuple[Ints, Ints]:
    """Edges (greater, least) from each document of a bucket to its least place: m - 1 for m documents.

    Buckets in which nobody is a newcomer have none: those documents are settled among themselves.
    """
    order = np.lexsort((places, keys))
    keys, places, newcomer = keys[order], places[order], newcomer[order]
    begins = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1]))) if keys.size else np.zeros(0, np.int64)
    sizes = np.diff(begins, append=keys.size)
    if not keys.size:
        return places, places
    matters = np.logical_or.reduceat(newcomer, begins)
    least = np.repeat(places[begins], sizes)
    edge = np.repeat(matters, sizes) & (places != least)
    pairs = np.unique(np.stack((places[edge], least[edge]), axis=1), axis=0)
    return pairs[:, 0], pairs[:, 1]


def components(greater: Ints, least: Ints) -> tuple[Ints, Ints]:
    """The nodes of these edges, in order, and for each the least node that it is connected with.

    >>> [x.tolist() for x in components(np.array([7, 9]), np.array([2, 7]))]
    [[2, 7, 9], [2, 2, 2]]
    """
    nodes, ends = np.unique(np.concatenate((greater, least)), return_inverse=True)
    left, right = ends[: greater.size], ends[greater.size :]
    graph = coo_array((np.ones(left.size, np.int8), (left, right)), shape=(nodes.size, nodes.size))
    label = connected_components(graph, directed=False)[1]
    root = np.full(nodes.size, nodes.size, np.int64)
    np.minimum.at(root, label, np.arange(nodes.size))
    return nodes, nodes[root[label]]


def duplicates_among(
    documents: Candidates, grams: Callable[[int], U64], threshold: float, limit: int
) -> tuple[Ints, npt.NDArray[np.float64]]:
    """The rule, over documents 0..n-1 in survivor order: for each the kept one that it repeats (itself, if it stays), and their similarity.

    `grams(i)` is the set of document i, sorted and without repeats. A kept document of the same digest is named if there is one,
    else the first in survivor order that is similar enough.
    """
    first = copies(documents.digest)
    kept, similarity = np.arange(first.size), np.ones(first.size)
    copied = (first != kept) & ~documents.settled
    judged, sizes = np.flatnonzero(~copied), documents.num_grams.tolist()
    listed: dict[int, list[int]] = defaultdict(list)
    for place, row in zip(judged.tolist(), _shared_buckets(documents.bands[judged], documents.num_grams[judged] > 0), strict=True):
        buckets = row[row >= 0].tolist()
        if not documents.settled[place]:
            near = set().union(*(listed[bucket] for bucket in buckets))
            rivals = sorted(k for k in near if _may_reach(sizes[place], sizes[k], threshold))
            match = _first_similar(place, rivals, grams, threshold)
            if match is not None:
                kept[place], similarity[place] = match
                continue
        for bucket in buckets:
            if len(listed[bucket]) < limit:
                listed[bucket].append(place)
    kept[copied], similarity[copied] = kept[first[copied]], similarity[first[copied]]
    return kept, similarity


def _shared_buckets(bands: U64, has_words: Bools) -> Ints:
    """For each document and band [n, b] the number of the bucket, or -1 where it holds no other document."""
    shared = np.full(bands.shape, -1, np.int64)
    worded = np.flatnonzero(has_words)
    number = 0
    for band in range(bands.shape[1]):
        _, inverse, counts = np.unique(bands[worded, band], return_inverse=True, return_counts=True)
        shared[worded, band] = np.where(counts[inverse] > 1, inverse + number, -1)
        number += counts.size
    return shared


def _may_reach(size: int, other: int, threshold: float) -> bool:
    """Whether two sets of these sizes can be so similar: if the smaller were a part of the larger.

    A quotient, as `jaccard` is one: 0.55 * 100 is rounded to more than 55.

    >>> _may_reach(55, 100, 0.55), _may_reach(54, 100, 0.55)
    (True, False)
    """
    return min(size, other) / max(size, other) >= threshold


def _first_similar(place: int, rivals: list[int], grams: Callable[[int], U64], threshold: float) -> tuple[int, float] | None:
    if not rivals:
        return None
    ours = grams(place)
    for kept in rivals:
        similarity = jaccard(ours, grams(kept))
        if similarity >= threshold:
            return kept, similarity
    return None
