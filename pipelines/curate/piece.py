"""Pieces: parquet files of judged documents between reading and writing, on storage that every task reaches.

Promise: a piece is whole or absent (local files are renamed into place, S3 objects appear whole), its name follows from its
documents, and so a task that is run again writes the same bytes to the same place. Price: the texts are written and read
once more (parquet, lz4); in exchange memory holds some MB a task however large the corpus is, and a lost node loses nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import resolve

__all__ = ["read_piece", "write_piece"]


def read_piece(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The columns of a piece, all by default."""
    filesystem, path = resolve(uri)
    with filesystem.open_input_file(path) as stream:
        return pq.read_table(stream, columns=None if columns is None else list(columns))


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
