"""The steps of curation as Ray Data runs them: functions from a table of documents to a table of documents.

Promise: a step never adds or loses a row; one that drops a document sets its `reason`, keeps an excerpt and lets go of its
text. `stage` ends the chain with one row for each piece written, `write` with one row for each reason and kind.
Price: columns become Python strings once a step; everything heavier is numpy (measure.py, minhash.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipelines.curate.config import CurateConfig
from pipelines.curate.document import DOCUMENT, DROPPED, KEPT, excerpt
from pipelines.curate.minhash import band_values, shingles
from pipelines.curate.normalize import canonical, clean
from pipelines.curate.piece import read_piece, write_piece
from pipelines.curate.quality import judge

__all__ = ["SUMMARY", "drop_by_quality", "normalise", "sign", "stage", "timed", "write"]

_PROFILE_OF_KIND = {"code": "code", "prose": "web"}
_SECONDS = "seconds."
_NUM_SAMPLES = 2

SUMMARY = pa.schema(
    {
        "piece": pa.string(),  # URI
        "first": pa.string(),  # sorts the pieces as their documents were read
        "documents_in": pa.int64(),
        "num_bytes": pa.int64(),  # of text, as UTF-8
        "row": pa.list_(pa.int64()),  # of the documents that are left: their rows in the piece, and what dedup needs to know
        "id": pa.list_(pa.string()),
        "num_chars": pa.list_(pa.int64()),
        "digest": pa.large_binary(),
        "bands": pa.large_binary(),
        "has_words": pa.list_(pa.bool_()),
        "seconds": pa.map_(pa.string(), pa.float64()),
        "reasons": pa.list_(pa.string()),  # of the documents dropped so far
        "unreadable": pa.list_(pa.string()),  # an example: source and what is wrong
    }
)


def timed(name: str, step: Callable[[pa.Table], pa.Table | Iterable[pa.Table]], table: pa.Table) -> Iterator[pa.Table]:
    """Run a step, and note its seconds in a column, shared out over the rows."""
    started = time.perf_counter()
    result = step(table)
    for made in [result] if isinstance(result, pa.Table) else result:
        seconds = (time.perf_counter() - started) / max(made.num_rows, 1)
        yield made.append_column(_SECONDS + name, pa.array(np.full(made.num_rows, seconds)))
        started = time.perf_counter()


def normalise(documents: pa.Table) -> pa.Table:
    """The text as it is kept."""
    texts = [None if text is None else clean(text) for text in documents["text"].to_pylist()]
    lengths = [0 if text is None else len(text) for text in texts]
    return _replaced(documents, text=texts, num_chars=lengths)


def drop_by_quality(documents: pa.Table, profile: str) -> pa.Table:
    """Judge by the profile, or by the one of each document's kind ("auto"); count words."""
    texts, reasons = documents["text"].to_pylist(), documents["reason"].to_pylist()
    num_words, excerpts = documents["num_words"].to_pylist(), documents["excerpt"].to_pylist()
    kinds = documents["kind"].to_pylist()
    if profile != "auto":
        kinds = ["code" if profile == "code" else "prose"] * len(kinds)
    for kind, rules in _PROFILE_OF_KIND.items():
        places = [i for i, text in enumerate(texts) if text is not None and kinds[i] == kind]
        found, words = judge([texts[i] for i in places], rules)
        for place, reason, count in zip(places, found, words, strict=True):
            num_words[place], reasons[place] = count, reason
            if reason is not None:
                texts[place], excerpts[place] = None, excerpt(texts[place])
    return _replaced(documents, text=texts, reason=reasons, num_words=num_words, excerpt=excerpts, kind=kinds)


def sign(documents: pa.Table, config: CurateConfig) -> pa.Table:
    """Add the digest of the canonical text and the MinHash bands (nulls for the dropped)."""
    texts = documents["text"].to_pylist()
    places = [i for i, text in enumerate(texts) if text is not None]
    canonicals = [canonical(texts[i]) for i in places]
    digests: list[bytes | None] = [None] * len(texts)
    bands: list[bytes | None] = [None] * len(texts)
    for place, text, grams in zip(places, canonicals, shingles(canonicals, config.ngram), strict=True):
        digests[place] = xxhash.xxh3_128_digest((text or texts[place]).encode())  # no words: equal only if the texts are
        if grams.size:
            bands[place] = band_values(grams, bands=config.bands, rows=config.rows, seed=config.seed).tobytes()
    return documents.append_column("digest", pa.array(digests, pa.binary())).append_column("bands", pa.array(bands, pa.binary()))


def stage(documents: pa.Table, folder: str, num_bands: int) -> pa.Table:
    """Write the documents as a piece; one row of `SUMMARY`."""
    uri = f"{folder}/{pc.min(documents['id']).as_py()[:20]}.parquet"
    write_piece(documents.select(DOCUMENT.names), uri)
    left = documents.append_column("row", pa.array(np.arange(documents.num_rows))).filter(pc.is_valid(documents["text"]))
    bands = left["bands"].to_pylist()
    bad = documents.filter(pc.starts_with(pc.fill_null(documents["reason"], ""), "unreadable.")).slice(0, 1)
    row = {
        "piece": uri,
        "first": f"{documents['source'][0].as_py()}\0{documents['ordinal'][0].as_py():012d}",
        "documents_in": documents.num_rows,
        "num_bytes": pc.sum(pc.binary_length(left["text"])).as_py() or 0,
        **{name: left[name].to_pylist() for name in ("row", "id", "num_chars")},
        "digest": b"".join(left["digest"].to_pylist()),
        "bands": b"".join(value or bytes(8 * num_bands) for value in bands),
        "has_words": [value is not None for value in bands],
        "seconds": [(n.removeprefix(_SECONDS), pc.sum(documents[n]).as_py()) for n in documents.column_names if n.startswith(_SECONDS)],
        "reasons": documents["reason"].drop_null().to_pylist(),
        "unreadable": [f"{r['source']}: {r['excerpt']}" for r in bad.to_pylist()],
    }
    return pa.Table.from_pylist([row], SUMMARY)


def write(dropped: pa.Table, folder: str) -> pa.Table:
    """Write a piece's documents to kept/ and dropped/; one row of counts and samples for each reason and kind.

    `dropped` is one row: the piece, the number its files get, and the rows that are duplicates with their fates.
    """
    fate = dropped.to_pylist()[0]
    documents = _with_fates(read_piece(fate["piece"]), fate)
    name = f"{fate['number']:05d}.parquet"
    for place, table in (("kept", _kept(documents)), ("dropped", _dropped(documents))):
        if table.num_rows:
            write_piece(table.sort_by("id"), f"{folder}/{place}/{name}", compression="zstd")
    return _counts(documents)


def _with_fates(documents: pa.Table, fate: dict[str, Any]) -> pa.Table:
    rows = documents.num_rows
    columns: dict[str, list[Any]] = {"reason": documents["reason"].to_pylist(), "duplicate_of": [None] * rows, "similarity": [None] * rows}
    excerpts, text = documents["excerpt"].to_pylist(), documents["text"]
    for row, reason, kept, similarity in zip(fate["row"], fate["reason"], fate["duplicate_of"], fate["similarity"], strict=True):
        columns["reason"][row], columns["duplicate_of"][row], columns["similarity"][row] = reason, kept, similarity
        excerpts[row] = excerpt(text[row].as_py())
    documents = _replaced(documents, reason=columns["reason"], excerpt=excerpts)
    for name in ("duplicate_of", "similarity"):
        documents = documents.append_column(DROPPED.field(name), pa.array(columns[name], DROPPED.field(name).type))
    return documents


def _kept(documents: pa.Table) -> pa.Table:
    return documents.filter(pc.is_null(documents["reason"])).select(KEPT.names).cast(KEPT)


def _dropped(documents: pa.Table) -> pa.Table:
    return documents.filter(pc.is_valid(documents["reason"])).select(DROPPED.names).cast(DROPPED)


def _counts(documents: pa.Table) -> pa.Table:
    """One row for each reason (none: kept) and kind: how many documents, bytes of text, and the first few by id."""
    size = pc.fill_null(pc.binary_length(documents["text"]), 0)
    keyed = documents.set_column(documents.column_names.index("reason"), "reason", pc.fill_null(documents["reason"], "")).append_column(
        "size", size
    )
    grouped = keyed.group_by(["reason", "kind"]).aggregate([("id", "count"), ("size", "sum")])
    samples: dict[str, list[dict[str, Any]]] = {}
    wanted = ["reason", "id", "source", "excerpt", "duplicate_of", "similarity"]
    for row in _dropped(documents).select(wanted).sort_by("id").to_pylist():
        if len(examples := samples.setdefault(row["reason"], [])) < _NUM_SAMPLES:
            examples.append(row)
    rows = grouped.to_pylist()
    return pa.table(
        {
            "reason": [r["reason"] for r in rows],
            "kind": [r["kind"] for r in rows],
            "documents": [r["id_count"] for r in rows],
            "num_bytes": [r["size_sum"] for r in rows],
            "samples": pa.array([samples.get(r["reason"], []) for r in rows], pa.list_(_SAMPLE)),
        }
    )


_SAMPLE = pa.struct([DROPPED.field(n) for n in ("reason", "id", "source", "excerpt", "duplicate_of", "similarity")])


def _replaced(documents: pa.Table, **columns: list[Any]) -> pa.Table:
    for name, values in columns.items():
        place = documents.schema.get_field_index(name)
        documents = documents.set_column(place, DOCUMENT.field(name), pa.array(values, DOCUMENT.field(name).type))
    return documents
