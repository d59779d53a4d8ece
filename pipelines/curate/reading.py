"""Files become documents: every record a row of `DOCUMENT`, the unreadable ones too, with their reason.

Promise: a record that cannot be read becomes a row with an `unreadable.…` reason instead of an exception, and so does the
rest of a file that breaks off; only a storage that does not answer raises OSError, since another day all would be read.
Price: a task holds one text file of up to `MOST_CHARS` or one web page, or a few MB of jsonl, parquet or WARC.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pyarrow as pa

from cluster.patience import patiently_given
from cluster.storage import is_unavailable
from pipelines.curate.document import DOCUMENT, UNREADABLE, document_id, excerpt
from pipelines.curate.formats import CODE
from pipelines.curate.records import MOST_CHARS, Fields, Record, read_jsonl, read_parquet, read_text
from pipelines.curate.web import read_html, read_warc

__all__ = ["read_files"]

_READERS: dict[str, Callable[..., Iterator[Record]]] = {"jsonl": read_jsonl, "parquet": read_parquet, "html": read_html, "warc": read_warc}
_YIELD_CHARS = 8 << 20
_ROW_CHARS = 512  # what a row weighs beside its text: an archive of images, a million broken lines must not be held at once
_FIELDS = Fields()


def read_files(files: pa.Table, fields: Fields = _FIELDS) -> Iterator[pa.Table]:
    """The records of the files as tables of `DOCUMENT` rows, some MB of text each.

    Columns of `files`: `uri`, as bytes or text, and `format`; of parts of files (divide.py) `begin`, `end` and `first` too.
    """
    rows: list[dict[str, Any]] = []
    chars = 0
    for file in files.to_pylist():
        extent = {name: file[name] for name in ("begin", "end") if file.get(name)}
        for row in _read_file(os.fsdecode(file["uri"]), file["format"], fields, file.get("first", 0), extent):
            rows.append(row)
            chars += len(row["text"] or "") + _ROW_CHARS
            if chars > _YIELD_CHARS:
                yield pa.Table.from_pylist(rows, DOCUMENT)
                rows, chars = [], 0
    if rows:
        yield pa.Table.from_pylist(rows, DOCUMENT)


def _read_file(uri: str, format_: str, fields: Fields, ordinal: int, extent: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """The records of one file, or of a part; the last may say that the rest cannot be read."""
    try:
        for record in patiently_given(partial(_READERS.get(format_, read_text), uri, fields, **extent)):
            yield _row(uri, ordinal, format_, record)
            ordinal += 1
    except FileNotFoundError:
        yield _row(uri, ordinal, format_, Record(None, problem="missing: the file was there when the input was listed"))
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        if is_unavailable(error):
            raise
        yield _row(uri, ordinal, format_, Record(None, problem=f"{'parquet' if format_ == 'parquet' else 'file'}: {error}"))


def _row(uri: str, ordinal: int, format_: str, record: Record) -> dict[str, Any]:
    row = {
        "text": None,
        "source": uri.encode(errors="backslashreplace").decode(),
        "ordinal": ordinal,
        "source_id": record.source_id,
        "date": record.date,
        "kind": "code" if format_ in CODE else "prose",
        "format": format_,
        "num_chars": 0,
        "num_words": 0,
    }
    problem = record.problem
    if record.text is not None and len(record.text) > MOST_CHARS:
        problem = f"too_large: more than {MOST_CHARS:,} characters; as .txt it would be cut into parts"
    elif record.text is not None:
        try:
            content = record.text.encode()
            return row | {"id": document_id(uri, ordinal, content), "text": record.text, "num_chars": len(record.text)}
        except UnicodeEncodeError as error:
            problem = f"encoding: {error}"
    reason, _, detail = problem.partition(": ")
    told = detail.encode(errors="backslashreplace").decode()
    return row | {"id": document_id(uri, ordinal, reason.encode()), "reason": UNREADABLE + reason, "excerpt": excerpt(told)}
