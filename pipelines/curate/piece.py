"""Pieces: parquet files of judged documents between reading and writing, on storage that every task reaches.

Promise: a piece is whole or absent (local files are renamed into place, S3 objects are sent when they are whole), its name follows
from its documents, and so a task that is run again writes the same bytes to the same place. Price: the texts are written and read
once more (parquet, lz4); in exchange memory holds some MB a task however large the corpus is, and a lost node loses nothing.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.patience import patiently
from cluster.storage import resolve
from pipelines.curate.spans import Ints

__all__ = ["count_rows", "read_piece", "read_rows", "refuse_if_elsewhere", "whole_file", "write_piece"]

_ROW_GROUP_BYTES = 1 << 20


@patiently
def read_piece(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The columns of a piece, all by default."""
    filesystem, path = resolve(uri)
    with filesystem.open_input_file(path) as stream:
        return pq.read_table(stream, columns=None if columns is None else list(columns))


@patiently
def read_rows(uri: str, rows: Ints, columns: Sequence[str]) -> pa.Table:
    """Some rows of a piece, in the order of `rows`; only the row groups that hold one of them are read."""
    filesystem, path = resolve(uri)
    with filesystem.open_input_file(path) as stream, pq.ParquetFile(stream) as file:
        sizes = np.array([file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)], np.int64)
        ends = np.cumsum(sizes)
        group = np.searchsorted(ends, rows, side="right")
        wanted = np.unique(group)
        shift = (ends - sizes)[wanted] - np.cumsum(sizes[wanted]) + sizes[wanted]  # rows of unread groups before each read one
        return file.read_row_groups(wanted.tolist(), columns=list(columns)).take(pa.array(rows - shift[np.searchsorted(wanted, group)]))


def count_rows(uris: Iterable[str]) -> int:
    """The rows of the pieces that this machine finds, by their footers; one that is not here has none."""
    return sum(map(_num_rows, uris))


@patiently
def _num_rows(uri: str) -> int:
    filesystem, path = resolve(uri)
    return int(pq.read_metadata(path, filesystem=filesystem).num_rows) if filesystem.get_file_info(path).is_file else 0


def refuse_if_elsewhere(output: str, what: str, found: int, expected: int) -> None:
    """ValueError if the driver finds less than its tasks say they wrote: a local path is another folder on each machine."""
    if found < expected:
        raise ValueError(
            f"{output}: {found:,} of {expected:,} {what} are in this folder: the workers wrote to other machines' disks; "
            "use s3:// or a folder that every node shares"
        )
    assert found == expected, f"{found} {what} in {output}, {expected} written"


@patiently
def write_piece(table: pa.Table, uri: str, compression: str = "lz4") -> None:
    """Write a piece in row groups of about a megabyte, replacing the one of that name."""
    rows = max(1, table.num_rows * _ROW_GROUP_BYTES // max(table.nbytes, 1))
    with whole_file(uri) as stream:
        pq.write_table(table, stream, compression=compression, row_group_size=rows)


@contextmanager
def whole_file(uri: str) -> Iterator[pa.NativeFile]:
    """A stream into a file that has its name only once everything is written.

    An S3 object is written from memory: pyarrow's stream, closed by an error, would leave what it has under the name.
    """
    filesystem, path = resolve(uri)
    if "://" in uri:
        held = pa.BufferOutputStream()
        yield held
        with filesystem.open_output_stream(path) as stream:
            stream.write(held.getvalue())
        return
    scratch = Path(f"{path}.{os.getpid()}.{uuid.uuid4().hex}")  # no other attempt's, on whatever node
    scratch.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filesystem.open_output_stream(str(scratch)) as stream:
            yield stream
        scratch.rename(path)
    finally:
        scratch.unlink(missing_ok=True)
