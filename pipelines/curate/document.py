"""A document on its way through curation: what is known of it, and the columns it is written in.

Promise: one row is one document from the moment it is read until it is kept or dropped; a drop sets `reason` and nothing
loses the row, so documents in = kept + dropped can be counted and not merely hoped. An id depends on the source, the
ordinal in it and the content as read: unique even for identical rows, equal when a task is retried.
"""

from __future__ import annotations

import pyarrow as pa
import xxhash

__all__ = ["DOCUMENT", "DROPPED", "KEPT", "UNREADABLE", "document_id", "excerpt"]

UNREADABLE = "unreadable."
"""Reasons that begin so count records that could not be read at all."""

_EXCERPT_CHARS = 200

DOCUMENT = pa.schema(
    {
        "id": pa.string(),
        "text": pa.large_string(),  # null once the document is dropped
        "source": pa.string(),  # path or URL of the file it came from
        "ordinal": pa.int64(),  # its place in that file, from 0
        "kind": pa.string(),  # "code" or "prose"
        "format": pa.string(),  # "py", "md", "rst", "txt", "jsonl", "parquet"
        "num_chars": pa.int64(),
        "num_words": pa.int64(),  # between white space
        "reason": pa.string(),  # null while the document is kept
        "excerpt": pa.string(),  # the first characters; for an unreadable record, what is wrong with it
    }
)

KEPT = pa.schema([DOCUMENT.field(n) for n in ("id", "text", "source", "ordinal", "kind", "format", "num_chars", "num_words")])

DROPPED = pa.schema(
    [
        *(DOCUMENT.field(n) for n in ("id", "source", "ordinal", "kind", "format", "num_chars", "reason")),
        pa.field("duplicate_of", pa.string()),  # id of the kept document, for duplicates
        pa.field("similarity", pa.float64()),  # exact Jaccard similarity with it
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
    return " ".join(text[: 2 * _EXCERPT_CHARS].split())[:_EXCERPT_CHARS]
