"""The records of a file: what plain text, jsonl and parquet hold, each with its text or with what is wrong with it.

Promise: a record that cannot be read comes back as a `Record` with a problem; only what breaks the file itself off (a
truncated archive, a broken parquet footer) raises, as OSError, EOFError, zlib.error or pa.ArrowException, after what stood before it
was given out. Price: a file of code or markup is held whole, up to `MOST_CHARS`; .txt passes by some MB, jsonl by lines, parquet by batches
of 1,024 rows.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as arrow_fs

from cluster.storage import resolve

__all__ = [
    "MOST_CHARS",
    "Fields",
    "Record",
    "json_lines",
    "open_file",
    "open_stream",
    "read_beginning",
    "read_jsonl",
    "read_parquet",
    "read_text",
    "seconds_since_1970",
]

MOST_CHARS = 16 << 20
"""Of one document: what is longer is a dump and no text, and the rules would take a GB to measure it."""
_PART_CHARS = 250_000  # a longer .txt is several documents, cut at blank lines, or else at lines
_PARQUET_ROWS = 1024
_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file: its text, or why there is none."""

    text: str | None
    source_id: str | None = None
    """What the source itself calls the record: the `id` of a jsonl line or a parquet row, the address of a web page."""
    problem: str = ""
    """"reason: what is wrong with it", where there is no text."""
    date: float | None = None
    """When it was written or fetched, in seconds since 1970, where the source says so."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The keys or columns to look under, in jsonl and parquet."""

    text: str = "text"
    id: str = "id"
    date: str = "date"


@lru_cache(maxsize=16)
def _filesystem(root: str) -> arrow_fs.FileSystem:
    return resolve(root)[0]


def _place(uri: str) -> tuple[arrow_fs.FileSystem, str | bytes]:
    if "://" not in uri:
        return _filesystem("/"), os.fsencode(uri)
    scheme, path = uri.split("://", 1)
    return _filesystem(f"{scheme}://{path.split('/', 1)[0]}"), path


def open_file(uri: str) -> pa.NativeFile:
    """The file for reading at any place in it."""
    filesystem, path = _place(uri)
    return filesystem.open_input_file(path)


@contextmanager
def open_stream(uri: str) -> Iterator[Any]:
    """The file from front to back, decompressed by its suffix: what a .gz holds before it breaks off can all be read."""
    filesystem, path = _place(uri)
    suffix = uri.lower().rsplit(".", 1)[-1]
    with filesystem.open_input_stream(path, compression="zstd" if suffix == "zst" else None) as stream:
        yield _Unpacked(stream) if suffix == "gz" else stream


class _Unpacked(io.RawIOBase):
    """A gzip stream that gives what it has, not as much as is asked for: so a reader loses nothing when the next bytes are bad."""

    def __init__(self, stream: Any) -> None:
        self._stream = gzip.GzipFile(fileobj=stream, mode="rb")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._stream.read1(len(buffer))
        buffer[: len(found)] = found
        return len(found)


def read_beginning(uri: str, most: int) -> bytes:
    """The first `most` bytes of the file as they are stored, or all."""
    filesystem, path = _place(uri)
    with filesystem.open_input_stream(path, compression=None) as stream:
        return io.BufferedReader(stream).read(most)


def read_text(uri: str, fields: Fields) -> Iterator[Record]:
    """One record: the file; of a .txt one for each of its parts."""
    filesystem, path = _place(uri)
    with filesystem.open_input_stream(path, compression=None) as stream:
        whole = not uri.lower().endswith(".txt")
        try:
            if whole:
                yield Record(_joined(_decoded(io.BufferedReader(stream))))
            else:
                yield from (Record(part) for part in _parts(_paragraphs(_decoded(io.BufferedReader(stream)))))
        except UnicodeDecodeError as error:
            yield Record(None, problem=f"encoding: {error.reason} at byte {error.start} of its part")
        except _BinaryError:
            yield Record(None, problem="binary: holds a zero byte")


def _joined(blocks: Iterable[str]) -> str:
    """The blocks as one text; of one that is too long so much as shows it."""
    held: list[str] = []
    left = MOST_CHARS
    for block in blocks:
        held.append(block)
        left -= len(block)
        if left < 0:
            break
    return "".join(held)


class _BinaryError(Exception):
    """A zero byte: no text."""


def _decoded(stream: io.BufferedReader) -> Iterator[str]:
    """The file's text, some MB at a time."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    while raw := stream.read(_BLOCK_BYTES):
        if b"\0" in raw:
            raise _BinaryError
        yield decoder.decode(raw)
    yield decoder.decode(b"", final=True)


def _paragraphs(blocks: Iterable[str]) -> Iterator[str]:
    """The text cut after blank lines; a paragraph longer than a part is cut after lines, a longer line stays."""
    left = ""
    for block in blocks:
        *whole, left = re.split(r"(?<=\n)(?=[ \t]*\r?\n)", left + block)
        for paragraph in whole:
            yield from [paragraph] if len(paragraph) <= _PART_CHARS else paragraph.splitlines(keepends=True)
        if len(left) > _PART_CHARS:
            *lines, left = left.splitlines(keepends=True)
            yield from lines
    yield left


def _parts(blocks: Iterable[str]) -> Iterator[str]:
    """The blocks joined into parts of up to `_PART_CHARS`."""
    part: list[str] = []
    size = 0
    for block in blocks:
        if part and size + len(block) > _PART_CHARS:
            yield "".join(part)
            part, size = [], 0
        part.append(block)
        size += len(block)
    yield "".join(part)


def read_jsonl(uri: str, fields: Fields, begin: int = 0, end: int | None = None) -> Iterator[Record]:
    """A record for each line that is not blank, of those that begin in bytes [begin, end)."""
    return (_json_record(line, fields) for line in json_lines(uri, begin, end))


def json_lines(uri: str, begin: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The lines that are not blank, of those that begin in bytes [begin, end) of a file that is not compressed, or of all."""
    with open_stream(uri) if end is None else open_file(uri) as stream:
        lines, last = io.BufferedReader(stream, 1 << 20), sys.maxsize if end is None else end
        place = _next_line(lines, begin, last)
        while place < last and (line := lines.readline()):
            place += len(line)
            if line.strip():
                yield line


def _next_line(stream: io.BufferedReader, begin: int, end: int) -> int:
    """Where the first line begins that does so at `begin` or later; if none does before `end`, no less than that."""
    if not begin:
        return 0
    place = stream.seek(begin - 1)
    while place < end and (piece := stream.readline(_BLOCK_BYTES)):
        place += len(piece)
        if piece.endswith(b"\n"):
            break
    return place


def _json_record(line: bytes, fields: Fields) -> Record:
    try:
        value = json.loads(line)
    except UnicodeDecodeError as error:
        return Record(None, problem=f"encoding: {error}")
    except (ValueError, RecursionError) as error:
        return Record(None, problem=f"json: {error}: {line[:100].decode(errors='replace')}")
    if not isinstance(value, dict):
        return Record(None, problem=f"no_text: not an object: {line[:100].decode(errors='replace')}")
    given, date = _given_id(value.get(fields.id)), seconds_since_1970(value.get(fields.date))
    if not isinstance(value.get(fields.text), str):
        return Record(None, given, f"no_text: no text under {fields.text!r}: {line[:100].decode(errors='replace')}", date)
    return Record(value[fields.text], given, date=date)


def _given_id(value: Any) -> str | None:
    r"""The id as text; a lone surrogate, which no column of text can hold, as its escape.

    >>> _given_id(17), _given_id("a\ud800"), _given_id(None)
    ('17', 'a\\ud800', None)
    """
    if value is None:
        return None
    return (value if isinstance(value, str) else str(value)).encode(errors="backslashreplace").decode()


def seconds_since_1970(value: Any) -> float | None:
    """A date as ISO 8601 text (UTC where it names no zone), as a datetime, or as such seconds already; None for anything else.

    >>> seconds_since_1970("1970-01-02"), seconds_since_1970("1970-01-01T01:00:00+01:00"), seconds_since_1970(7), seconds_since_1970("May")
    (86400.0, 0.0, 7.0, None)
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if abs(value) < 1e15 else None  # NaN fails the comparison too
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        if not isinstance(moment, datetime):
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def read_parquet(uri: str, fields: Fields, begin: int = 0, end: int | None = None) -> Iterator[Record]:
    """A record for each row of the row groups [begin, end)."""
    with open_file(uri) as stream, pq.ParquetFile(stream) as file:
        names = file.schema_arrow.names
        if fields.text not in names:
            if not begin:  # else the first part has said it
                yield Record(None, problem=f"no_text: no column {fields.text!r}; columns: {', '.join(names)}")
            return
        wanted = [name for name in dict.fromkeys((fields.text, fields.id, fields.date)) if name in names]
        groups = range(begin, file.num_row_groups if end is None else end)
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=wanted, row_groups=groups):
            dated = _seconds_for_dates(batch, fields.date)
            columns = {name: _values(column) for name, column in zip(dated.schema.names, dated.columns, strict=True)}
            rows = zip(*(columns.get(name, [None] * batch.num_rows) for name in (fields.text, fields.id, fields.date)), strict=True)
            yield from (_row_record(text, given, date, fields) for text, given, date in rows)


def _seconds_for_dates(batch: pa.RecordBatch, name: str) -> pa.RecordBatch:
    """The batch with this column, where it holds dates, in seconds since 1970: Python has none of nanoseconds or after the year 9999."""
    place = batch.schema.get_field_index(name)
    if place < 0 or not pa.types.is_temporal(kind := batch.schema.field(place).type):
        return batch
    column = batch.column(place)
    if pa.types.is_date(kind):
        column, kind = column.cast(pa.timestamp("ms")), pa.timestamp("ms")
    if not pa.types.is_timestamp(kind):  # a time of day, a duration: no date
        return batch.set_column(place, name, pa.nulls(batch.num_rows))
    return batch.set_column(place, name, pc.divide(column.cast(pa.int64()).cast(pa.float64(), safe=False), _PER_SECOND[kind.unit]))


def _values(column: pa.Array) -> list[Any]:
    """The column's values as Python's, an error in place of each that Python cannot hold: bytes that are no UTF-8, a far-off day."""
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError, KeyError):
        return [_value(value) for value in column]


def _value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError, KeyError) as error:
        return error


def _row_record(text: Any, given: Any, date: Any, fields: Fields) -> Record:
    own, seconds = None if isinstance(given, Exception) else _given_id(given), seconds_since_1970(date)
    if isinstance(text, str):
        return Record(text, own, date=seconds)
    if isinstance(text, UnicodeDecodeError):
        return Record(None, own, f"encoding: {text}", seconds)
    return Record(None, own, f"no_text: no text in column {fields.text!r}", seconds)
