"""Which documents are to be compared at all, and in which component each is: candidates and what they are connected with.

Promise: the labels are the same whichever way they are found. The driver does it where the signatures fit into `driver_bytes`;
else the values of the bands are dealt to shards on storage, a task for each makes star edges, and the driver joins those where
they fit; else large-star and small-star steps (stars.py) run over shards of the nodes until nothing moves. The label of a
component is the least place in it. Price: the driver holds 14 bytes a document and band, or 16 an edge, or nothing, and about as
much again while it joins, however many copies there are; a shard's task holds about `task_bytes`, and 16 bytes for each document of
a bucket that is larger.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.curate.bundle import Bundle, bundle_of
from pipelines.curate.components import components, star_edges
from pipelines.curate.config import CurateConfig
from pipelines.curate.shards import forget, gather, scatter, shard_of
from pipelines.curate.signature import keys_of
from pipelines.curate.spans import U64, Ints
from pipelines.curate.stars import large_star, small_star
from pipelines.curate.tasks import in_tasks

__all__ = ["LABEL", "Labels", "label"]

LABEL = pa.schema({"place": pa.int64(), "component": pa.int64()})
_BUCKET = pa.schema({"key": pa.uint64(), "place": pa.int64()})
_EDGE = pa.schema({"node": pa.int64(), "neighbour": pa.int64()})
_EDGE_BYTES = 16
_KEY_PARTS = 16
_MOST_ROUNDS = 100


@dataclass(frozen=True, slots=True)
class Labels:
    """Files 0..num_files-1 of a folder, each with a batch of `LABEL` rows for each bundle; singletons have none."""

    folder: str
    num_files: int
    num_documents: int
    """Documents that have a label."""
    num_edges: int
    rounds: int
    """Large-star and small-star steps taken; 0 where the driver joined the edges."""


def label(bundles: Sequence[Bundle], config: CurateConfig, folder: str) -> Labels:
    """Label every document that shares a bucket with another, one of the two not settled."""
    num_documents = sum(bundle.num_documents for bundle in bundles)
    if num_documents * 14 * config.bands <= config.driver_bytes:
        return _join(_edges_on_driver(bundles, num_documents, config.bands), num_documents, len(bundles), folder)
    num_shards = -(-num_documents * 16 * config.bands // config.task_bytes)
    num_new = sum(not bundle.settled for bundle in bundles)
    in_tasks(_deal_buckets, bundles, num_shards, folder)
    num_edges = sum(in_tasks(_deal_stars, range(num_shards), len(bundles), num_new, num_shards, folder))
    forget(f"{folder}/buckets")
    if num_edges * _EDGE_BYTES <= config.driver_bytes:
        return _join(_all_edges(num_shards, folder), num_documents, len(bundles), folder)
    rounds = _settle(num_shards, folder)
    labelled = sum(in_tasks(_deal_labels, range(num_shards), num_shards, rounds, len(bundles), folder))
    return Labels(f"{folder}/labels", num_shards, labelled, num_edges, rounds)


def _edges_on_driver(bundles: Sequence[Bundle], num_documents: int, num_bands: int) -> Iterator[tuple[Ints, Ints]]:
    """Star edges of all buckets, of a sixteenth of the keys at a time."""
    keys, place = np.empty((num_documents, num_bands), np.uint64), np.empty(num_documents, np.int64)
    newcomer = np.empty(num_documents, bool)
    end = 0
    for bundle in bundles:
        for number, piece in enumerate(bundle.pieces):
            begin, end = end, end + piece.num_documents
            keys[begin:end], place[begin:end] = keys_of(bundle, number, piece)
            newcomer[begin:end] = not bundle.settled
    lowest = keys.ravel().view(np.uint8)[:: keys.itemsize]  # a byte of each key
    for part in range(_KEY_PARTS):
        inside = np.flatnonzero(lowest % _KEY_PARTS == part)
        owner = inside // num_bands
        yield star_edges(keys.ravel()[inside], place[owner], newcomer[owner])


def _join(edges: Iterable[tuple[Ints, Ints]], num_documents: int, num_bundles: int, folder: str) -> Labels:
    """Components of all edges here; the labels as one file."""
    greater, least, num_edges = _spanning(edges, num_documents)
    place, component = components(greater, least)
    scatter(pa.table([place, component], LABEL), bundle_of(place), num_bundles, f"{folder}/labels", 0)
    return Labels(f"{folder}/labels", 1, place.size, num_edges, 0)


def _spanning(edges: Iterable[tuple[Ints, Ints]], most: int) -> tuple[Ints, Ints, int]:
    """Edges that connect what all of these do, and how many those are; they come in parts, of which twice `most` are held on to.

    Copies share every band: all edges may be as many times the documents as there are bands. `most` is the number of documents,
    which fewer edges connect, so parts are joined only when as many more have come.
    """
    held = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    num_held = total = 0
    for part in edges:
        held.append(part)
        num_held, total = num_held + part[0].size, total + part[0].size
        if num_held > 2 * most:
            node, root = components(*map(np.concatenate, zip(*held, strict=True)))
            held = [(node[node != root], root[node != root])]
            num_held = held[0][0].size
    greater, least = map(np.concatenate, zip(*held, strict=True))
    return greater, least, total


def _deal_buckets(bundle: Bundle, num_shards: int, folder: str) -> None:
    """The bucket keys of a bundle's documents, dealt by key."""
    dealt = [keys_of(bundle, number, piece) for number, piece in enumerate(bundle.pieces)]
    keys: U64 = np.concatenate([k.ravel() for k, _ in dealt])
    place = np.concatenate([np.repeat(p, k.shape[1]) for k, p in dealt])
    scatter(pa.table([keys, place], _BUCKET), shard_of(keys, num_shards), num_shards, f"{folder}/buckets", bundle.number)


def _deal_stars(shard: int, num_bundles: int, num_new: int, num_shards: int, folder: str) -> int:
    """The star edges of a shard's buckets, dealt to both of their ends; how many there are."""
    buckets = gather(f"{folder}/buckets", range(num_bundles), shard, _BUCKET)
    place = buckets["place"].to_numpy()
    greater, least = star_edges(buckets["key"].to_numpy(), place, bundle_of(place) < num_new)
    _deal_both_ways(greater, least, num_shards, f"{folder}/edges-0", shard)
    return greater.size


def _deal_both_ways(greater: Ints, least: Ints, num_shards: int, folder: str, number: int) -> None:
    node, neighbour = np.concatenate((greater, least)), np.concatenate((least, greater))
    scatter(pa.table([node, neighbour], _EDGE), shard_of(node, num_shards), num_shards, folder, number)


def _all_edges(num_shards: int, folder: str) -> Iterator[tuple[Ints, Ints]]:
    """Every star edge once, from its greater end, a shard's at a time."""
    for shard in range(num_shards):
        node, neighbour = _edges(f"{folder}/edges-0", num_shards, shard)
        yield node[node > neighbour], neighbour[node > neighbour]


def _edges(folder: str, num_shards: int, shard: int) -> tuple[Ints, Ints]:
    table = gather(folder, range(num_shards), shard, _EDGE)
    return table["node"].to_numpy(), table["neighbour"].to_numpy()


def _settle(num_shards: int, folder: str) -> int:
    """Large-star and small-star steps until nothing moves; how many rounds."""
    for rounds in range(1, _MOST_ROUNDS):
        moved = sum(in_tasks(_large, range(num_shards), num_shards, rounds, folder))
        forget(f"{folder}/edges-{rounds - 1}")
        moved += sum(in_tasks(_small, range(num_shards), num_shards, rounds, folder))
        forget(f"{folder}/large-{rounds}")
        if not moved:
            return rounds
    raise AssertionError(f"components did not settle in {_MOST_ROUNDS} rounds")


def _large(shard: int, num_shards: int, rounds: int, folder: str) -> int:
    greater, least, moved = large_star(*_edges(f"{folder}/edges-{rounds - 1}", num_shards, shard))
    dealt = pa.table([greater, least], _EDGE)
    scatter(dealt, shard_of(greater, num_shards), num_shards, f"{folder}/large-{rounds}", shard)
    return moved


def _small(shard: int, num_shards: int, rounds: int, folder: str) -> int:
    greater, least, joined = small_star(*_edges(f"{folder}/large-{rounds}", num_shards, shard))
    _deal_both_ways(greater, least, num_shards, f"{folder}/edges-{rounds}", shard)
    return joined


def _deal_labels(shard: int, num_shards: int, rounds: int, num_bundles: int, folder: str) -> int:
    """The labels of a shard's nodes, dealt to their bundles; how many. Every node hangs on its component's least or is it."""
    node, neighbour = _edges(f"{folder}/edges-{rounds}", num_shards, shard)
    place, ends = np.unique(node, return_inverse=True)
    component = place.copy()
    np.minimum.at(component, ends, neighbour)
    scatter(pa.table([place, component], LABEL), bundle_of(place), num_bundles, f"{folder}/labels", shard)
    return place.size
