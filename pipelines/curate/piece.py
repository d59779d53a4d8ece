"""Pieces: parquet files of judged documents between reading and writing, on storage that every task reaches.

Promise: a piece is whole or absent (local files are renamed into place, S3 objects appear whole), its name follows from its
documents, and so a task that is run again writes the same bytes to the same place. Price: the texts are written and read
once more (parquet, lz4); in exchange memory holds some MB a task however large the corpus is, and a lost node loses nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import resolve

__all__ = ["count_rows", "read_piece", "refuse_if_elsewhere", "write_piece"]


def read_piece(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The columns of a piece, all by default."""
    filesystem, path = resolve(uri)
    with filesystem.open_input_file(path) as stream:
        return pq.read_table(stream, columns=None if columns is None else list(columns))


def count_rows(uris: Iterable[str]) -> int:
    """The rows of the pieces that this machine finds, by their footers; one that is not here has none."""
    rows = 0
    for uri in uris:
        filesystem, path = resolve(uri)
        if filesystem.get_file_info(path).is_file:
            rows += pq.read_metadata(path, filesystem=filesystem).num_rows
    return rows


def refuse_if_elsewhere(output: str, what: str, found: int, expected: int) -> None:
    """ValueError if the driver finds less than its tasks say they wrote: a local path is another folder on each machine."""
    if found < expected:
        raise ValueError(
            f"{output}: {found:,} of {expected:,} {what} are in this folder: the workers wrote to other machines' disks; "
            "use s3:// or a folder that every node shares"
        )
    assert found == expected, f"{found} {what} in {output}, {expected} written"


def write_piece(table: pa.Table, uri: str, compression: str = "lz4") -> None:
    """Write a piece, replacing the one of that name."""
    filesystem, path = resolve(uri)
    if "://" in uri:
        with filesystem.open_output_stream(path) as stream:
            pq.write_table(table, stream, compression=compression)
        return
    scratch = Path(f"{path}.{os.getpid()}")
    scratch.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, scratch, compression=compression)
    scratch.rename(path)
