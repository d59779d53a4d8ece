"""A document on its way through curation: what is known of it, and the columns it is written in.

Promise: one row is one document from the moment it is read until it is kept or dropped; a drop sets `reason` and nothing
loses the row, so documents in = kept + dropped can be counted and not merely hoped. An id depends on the source, the
ordinal in it and the content as read (or the reason, where it cannot be): unique even for identical rows, equal when a task is retried.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import xxhash

__all__ = ["DOCUMENT", "DROPPED", "EXCERPT_CHARS", "HIT", "KEPT", "MARKED", "UNREADABLE", "document_id", "excerpt", "replaced"]

UNREADABLE = "unreadable."
"""Reasons that begin so count records that could not be read at all."""

EXCERPT_CHARS = 200
"""The length of an excerpt, at most."""

DOCUMENT = pa.schema(
    {
        "id": pa.string(),
        "text": pa.large_string(),  # null once the document is dropped
        "source": pa.string(),  # path or URL of the file it came from
        "ordinal": pa.int64(),  # its place in that file, from 0
        "source_id": pa.string(),  # what the source itself calls it: the `id` of a jsonl line or parquet row, a page's address
        "kind": pa.string(),  # "code" or "prose"
        "format": pa.string(),  # "py", "md", "jsonl", "warc", …: formats.py
        "language": pa.string(),  # ISO 639-1, of prose, where languages are asked for
        "quality": pa.float64(),  # probability that people would call it good, where labels are given
        "date": pa.float64(),  # when it was written or fetched, in seconds since 1970, where the source says so
        "num_chars": pa.int64(),
        "num_words": pa.int64(),  # between white space
        "reason": pa.string(),  # null while the document is kept
        "excerpt": pa.string(),  # the first characters; for an unreadable record, what is wrong with it
    }
)

_TOLD = ("source", "ordinal", "source_id", "kind", "format", "language", "quality", "num_chars")

HIT = pa.struct({"set": pa.string(), "item": pa.string(), "passage": pa.string(), "cut": pa.bool_()})
"""An item of an evaluation set that a document shares a passage with: the longest such, and whether it was cut and the rest kept."""

MARKED = (
    pa.field("score", pa.float64()),  # log importance weight, or how unsure the model is, where documents are selected by one
    pa.field("order", pa.int64()),  # place in the order of training, where one is asked for: a rank, perhaps with gaps
)

KEPT = pa.schema([*(DOCUMENT.field(n) for n in ("id", "text", *_TOLD, "num_words")), *MARKED])

DROPPED = pa.schema(
    [
        *(DOCUMENT.field(n) for n in ("id", *_TOLD, "reason")),
        pa.field("duplicate_of", pa.string()),  # id of the kept document, for duplicates
        pa.field("similarity", pa.float64()),  # exact Jaccard similarity with it
        MARKED[0],
        DOCUMENT.field("excerpt"),
    ]
)


def document_id(source: str, ordinal: int, content: bytes) -> str:
    """32 hex digits: xxh3_128 of the source, the ordinal and the content as read.

    >>> document_id("a.txt", 0, b"x") == document_id("a.txt", 0, b"x") != document_id("a.txt", 1, b"x")
    True
    """
    hasher = xxhash.xxh3_128(f"{len(source)}:{source}:{ordinal}:".encode("utf-8", "surrogateescape"))
    hasher.update(content)
    return hasher.hexdigest()


def excerpt(text: str) -> str:
    """The first characters of `text`, on one line."""
    return " ".join(text[: 2 * EXCERPT_CHARS].split())[:EXCERPT_CHARS]


def replaced(documents: pa.Table, **columns: list[Any]) -> pa.Table:
    """The table with these columns of `DOCUMENT` given anew."""
    for name, values in columns.items():
        place = documents.schema.get_field_index(name)
        documents = documents.set_column(place, DOCUMENT.field(name), pa.array(values, DOCUMENT.field(name).type))
    return documents
