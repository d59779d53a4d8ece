"""The steps of curation as Ray Data runs them: functions from a table of documents to a table of documents.

Promise: a step never adds or loses a row; one that drops a document sets its `reason`, keeps an excerpt and lets go of its
text. `stage` ends the chain with one row for each piece written; write.py goes on from there.
Price: columns become Python strings once a step; everything heavier is numpy (measure.py, minhash.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipelines.curate.config import CurateConfig
from pipelines.curate.document import DOCUMENT, HIT, excerpt, replaced
from pipelines.curate.minhash import band_values, shingles
from pipelines.curate.normalize import canonical, clean
from pipelines.curate.piece import write_piece
from pipelines.curate.quality import judge
from pipelines.curate.signature import claims, fixed_bytes, signature_schema

__all__ = ["SUMMARY", "drop_by_quality", "normalise", "sign", "signatures", "stage", "timed"]

_PROFILES_OF = {  # for each kind of document; a profile not named here is one for prose
    "auto": {"code": "code", "prose": "web"},
    "code": {"code": "code"},
    "none": {"code": "none", "prose": "none"},
}
_SECONDS = "seconds."

SUMMARY = pa.schema(
    {
        "piece": pa.string(),  # URI of the documents
        "signatures": pa.string(),  # URI of what duplicates are found by: a row for each document that is left
        "first": pa.string(),  # sorts the pieces as their documents were read
        "documents_in": pa.int64(),
        "num_bytes": pa.int64(),  # of the text that is left, as UTF-8
        "num_documents": pa.int64(),  # that are left
        "num_chars": pa.int64(),  # of theirs
        "seconds": pa.map_(pa.string(), pa.float64()),
        "reasons": pa.map_(pa.string(), pa.int64()),  # of the documents dropped so far, and how many
        "unreadable": pa.list_(pa.string()),  # an example: source and what is wrong
        "hits": pa.list_(HIT),  # of evaluation sets
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
    return replaced(documents, text=texts, num_chars=lengths)


def drop_by_quality(documents: pa.Table, profile: str, rules: Mapping[str, Any] | None = None) -> pa.Table:
    """Judge by the profile, or by the one of each document's kind ("auto"), with these thresholds given anew; count words."""
    texts, reasons = documents["text"].to_pylist(), documents["reason"].to_pylist()
    num_words, excerpts = documents["num_words"].to_pylist(), documents["excerpt"].to_pylist()
    kinds = documents["kind"].to_pylist()
    if profile not in ("auto", "none"):
        kinds = ["code" if profile == "code" else "prose"] * len(kinds)
    for kind, name in _PROFILES_OF.get(profile, {"prose": profile}).items():
        places = [i for i, text in enumerate(texts) if text is not None and kinds[i] == kind]
        found, words = judge([texts[i] for i in places], name, rules)
        for place, reason, count in zip(places, found, words, strict=True):
            num_words[place], reasons[place] = count, reason
            if reason is not None:
                texts[place], excerpts[place] = None, excerpt(texts[place])
    return replaced(documents, text=texts, reason=reasons, num_words=num_words, excerpt=excerpts, kind=kinds)


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


def signatures(signed: pa.Table, config: CurateConfig) -> pa.Table:
    """What duplicates are found by: a row for each of the documents that has a text."""
    left = signed.append_column("row", pa.array(np.arange(signed.num_rows))).filter(pc.is_valid(signed["text"]))
    bands = left["bands"].to_pylist()
    known = {name: left[name].to_pylist() for name in ("num_chars", "quality", "date")}
    width = 8 * config.bands
    columns = {
        "row": left["row"],
        "id": left["id"],
        "claim": pa.array(claims(known, config.survivors), pa.float64()),
        "num_chars": left["num_chars"],
        "digest": fixed_bytes(left["digest"].to_pylist(), 16),
        "bands": fixed_bytes([value or bytes(width) for value in bands], width),
        "has_words": pa.array([value is not None for value in bands], pa.bool_()),
    }
    return pa.table(columns).cast(signature_schema(config.bands))


def stage(documents: pa.Table, folder: str, config: CurateConfig) -> pa.Table:
    """Write the signed documents as a piece, and their signatures beside it; one row of `SUMMARY`."""
    name = f"{folder}/{pc.min(documents['id']).as_py()[:20]}"
    write_piece(documents.select(DOCUMENT.names), f"{name}.parquet")
    signed = signatures(documents, config)
    write_piece(signed, f"{name}.signatures")
    bad = documents.filter(pc.starts_with(pc.fill_null(documents["reason"], ""), "unreadable.")).slice(0, 1)
    reasons = documents["reason"].drop_null().value_counts().to_pylist()
    row = {
        "piece": f"{name}.parquet",
        "signatures": f"{name}.signatures",
        "first": f"{documents['source'][0].as_py()}\0{documents['ordinal'][0].as_py():012d}",
        "documents_in": documents.num_rows,
        "num_bytes": pc.sum(pc.binary_length(documents["text"])).as_py() or 0,
        "num_documents": signed.num_rows,
        "num_chars": pc.sum(signed["num_chars"]).as_py() or 0,
        "seconds": [(n.removeprefix(_SECONDS), pc.sum(documents[n]).as_py()) for n in documents.column_names if n.startswith(_SECONDS)],
        "reasons": sorted((reason["values"], reason["counts"]) for reason in reasons),
        "unreadable": [f"{r['source']}: {r['excerpt']}" for r in bad.to_pylist()],
        "hits": list(chain.from_iterable(documents["hits"].to_pylist())) if "hits" in documents.column_names else [],
    }
    return pa.Table.from_pylist([row], SUMMARY)
