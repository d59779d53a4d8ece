"""Duplicates over a whole corpus: exact copies and near-duplicates, each drop verified against a document that is kept.

Promise: what is dropped depends on the documents and the configuration alone, not on the pieces they are read in, their
order, or how often a task is retried; every drop names a kept document and their exact similarity. Price: the driver holds
some 200 bytes a document (its bands, not its text); tasks read again only the documents that are someone's candidate, and
hold about 64 MB of their text at a time. How: `components.py` decides, this file fetches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from pipelines.curate.components import components, copies, near_duplicates, partitions, survivor_order
from pipelines.curate.config import CurateConfig
from pipelines.curate.minhash import shingles
from pipelines.curate.normalize import canonical
from pipelines.curate.piece import read_piece

__all__ = ["Signatures", "Verdicts", "duplicates"]

_PARTITION_CHARS = 64 << 20


@dataclass(frozen=True, slots=True)
class Signatures:
    """What the driver knows of the documents that passed the quality rules; parallel arrays [n]."""

    piece: np.ndarray
    """Number of the piece that holds the document."""
    row: np.ndarray
    """Its row there."""
    id: np.ndarray
    num_chars: np.ndarray
    digest: np.ndarray
    """128-bit hash of the canonical text."""
    bands: np.ndarray
    """MinHash band values [n, bands]."""
    has_words: np.ndarray
    """Whether the document has shingles to be compared."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The dropped documents; parallel arrays [m]."""

    document: np.ndarray
    """Place of the document in the signatures."""
    kept: np.ndarray
    """Place of the kept document that it repeats."""
    similarity: np.ndarray
    exact: np.ndarray
    """Whether the kept document has the same canonical text."""


def duplicates(signatures: Signatures, pieces: Sequence[str], config: CurateConfig) -> Verdicts:
    """Who is dropped as a duplicate. Ray must be attached; `pieces` are the URIs of the pieces that hold the texts."""
    order = survivor_order(signatures.num_chars, signatures.id)
    first = copies(signatures.digest[order])
    original = first == np.arange(order.size)
    component = components(signatures.bands[order], signatures.has_words[order] & original)
    partition = partitions(component, signatures.num_chars[order], _PARTITION_CHARS)
    near_kept, similarity = _near(signatures, pieces, order, partition, config)
    kept = near_kept[first]  # a copy shares its original's fate
    dropped = np.flatnonzero(~original | (near_kept != np.arange(order.size)))
    return Verdicts(order[dropped], order[kept[dropped]], similarity[first][dropped], near_kept[first[dropped]] == first[dropped])


def _near(signatures: Signatures, pieces: Sequence[str], order: np.ndarray, partition: np.ndarray, config: CurateConfig) -> Any:
    """For each rank in survivor order the rank of the kept document it repeats (its own, if none), and the similarity."""
    kept, similarity = np.arange(order.size), np.ones(order.size)
    num_partitions = int(partition.max(initial=-1)) + 1
    if num_partitions:
        candidates = ray.data.from_arrow(_candidates(signatures, pieces, order, partition))
        shared = {"batch_format": "pyarrow", "batch_size": None}
        grams = candidates.map_batches(_fetch_grams, fn_kwargs={"ngram": config.ngram}, **shared)
        together = grams.repartition(1) if num_partitions == 1 else grams.repartition(num_partitions, keys=["partition"])
        judged = together.map_batches(_judge_block, fn_kwargs={"threshold": config.threshold}, **shared)
        for batch in judged.iter_batches(batch_format="numpy", batch_size=None):
            kept[batch["rank"]] = batch["kept"]
            similarity[batch["rank"]] = batch["similarity"]
    return kept, similarity


def _candidates(signatures: Signatures, pieces: Sequence[str], order: np.ndarray, partition: np.ndarray) -> list[pa.Table]:
    """For each piece that holds candidates a table of which rows to read, and what the rule needs to know of them."""
    ranks = np.flatnonzero(partition >= 0)
    documents = order[ranks]
    by_piece = np.lexsort((signatures.row[documents], signatures.piece[documents]))
    ranks, documents = ranks[by_piece], documents[by_piece]
    bounds = np.searchsorted(signatures.piece[documents], np.arange(len(pieces) + 1))
    return [
        pa.table(
            {
                "piece": [pieces[number]] * (end - begin),
                "row": signatures.row[documents[begin:end]],
                "rank": ranks[begin:end],
                "partition": partition[ranks[begin:end]],
                "bands": _binary_rows(signatures.bands[documents[begin:end]]),
            }
        )
        for number, (begin, end) in enumerate(pairwise(bounds.tolist()))
        if end > begin
    ]


def _binary_rows(values: np.ndarray) -> pa.Array:
    """[n, k] of any type -> n values of fixed-size binary."""
    values = np.ascontiguousarray(values)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(values.strides[0]), len(values), [None, pa.py_buffer(values)])


def _fetch_grams(wanted: pa.Table, ngram: int) -> pa.Table:
    """Read the wanted rows of one piece; add the set of n-grams of each."""
    texts = read_piece(wanted["piece"][0].as_py(), ["text"])["text"].take(wanted["row"]).to_pylist()
    sets = [np.unique(grams) for grams in shingles([canonical(text) for text in texts], ngram)]
    offsets = np.cumsum([0, *(len(s) for s in sets)])
    column = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(np.concatenate(sets), pa.uint64()))
    return wanted.select(["partition", "rank", "bands"]).append_column("grams", column)


def _judge_block(block: pa.Table, threshold: float) -> pa.Table:
    """Whole components, perhaps of several partitions -> rank, kept rank and similarity of the dropped."""
    block = block.sort_by("rank").combine_chunks()
    ranks = block["rank"].to_numpy()
    dropped = []
    if block.num_rows:  # a shuffle may leave some of its blocks empty
        grams = block["grams"].combine_chunks()
        bands = np.array([np.frombuffer(b, np.uint64) for b in block["bands"].to_pylist()])
        dropped = near_duplicates(bands, lambda place: grams[place].values.to_numpy(), threshold)
    return pa.table(
        {
            "rank": pa.array([ranks[d.place] for d in dropped], pa.int64()),
            "kept": pa.array([ranks[d.kept] for d in dropped], pa.int64()),
            "similarity": pa.array([d.similarity for d in dropped], pa.float64()),
        }
    )
