"""What duplicates are found by: a row for each document that is left, in a file beside its piece, and as arrays.

Promise: a few hundred bytes stand for a text, whatever its length: where it is, its claim to stay, its size, the digest of its
canonical text and its MinHash bands. The corpus keeps the rows of its documents, so that a later batch is compared with it
without reading it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.curate.bundle import Bundle, Piece, places
from pipelines.curate.components import bucket_keys
from pipelines.curate.piece import read_piece
from pipelines.curate.spans import U64, Ints

__all__ = ["COMPARABLE_SETTINGS", "SIGNATURE_FORM", "claims", "digests_of", "fixed_bytes", "keys_of", "signature_schema", "values_of"]

COMPARABLE_SETTINGS = ("ngram", "bands", "rows", "seed")
"""Two corpora can be compared by their signatures if these are the same."""
SIGNATURE_FORM = 1
"""And this, which each corpus notes: to be raised when the normal form, the hashes or the functions of MinHash change."""


def signature_schema(num_bands: int) -> pa.Schema:
    """The columns of a signatures file."""
    return pa.schema(
        {
            "row": pa.int64(),  # of the document in its piece
            "id": pa.string(),
            "claim": pa.float64(),  # the least goes first in survivor order
            "num_chars": pa.int64(),
            "digest": pa.binary(16),  # of the canonical text
            "bands": pa.binary(8 * num_bands),
            "has_words": pa.bool_(),  # else there is nothing to compare but the digest
        }
    )


def claims(documents: Mapping[str, Any], survivors: str) -> list[float]:
    """How early each document comes in survivor order (least first), by `num_chars`, `quality` or `date` as configured.

    >>> claims({"num_chars": [5, 9]}, "longest"), claims({"quality": [0.2, None]}, "best")
    ([-5.0, -9.0], [-0.2, inf])
    """
    name, sign = {"longest": ("num_chars", -1.0), "best": ("quality", -1.0), "oldest": ("date", 1.0)}[survivors]
    return [float("inf") if value is None else sign * value for value in documents[name]]


def fixed_bytes(values: list[bytes], width: int) -> pa.Array:
    """Values of one width as a column of fixed-size binary."""
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(values), [None, pa.py_buffer(b"".join(values))])


def values_of(column: pa.ChunkedArray, dtype: Any) -> np.ndarray:
    """A column of fixed-size binary as an array [n, items], each value so many items of the type."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    width = array.type.byte_width
    raw = np.frombuffer(array.buffers()[1], np.uint8) if len(array) else np.zeros(0, np.uint8)
    held = raw[array.offset * width : (array.offset + len(array)) * width]
    return held.view(dtype).reshape(len(array), width // np.dtype(dtype).itemsize)


def digests_of(column: pa.ChunkedArray) -> np.ndarray:
    """A column of digests as an array [n] of 16 bytes each."""
    return values_of(column, "V16")[:, 0]


def keys_of(bundle: Bundle, number: int, piece: Piece) -> tuple[U64, Ints]:
    """Bucket keys [n, bands] and places [n] of a piece's documents."""
    table = read_piece(piece.signatures, ["row", "digest", "bands", "has_words"])
    has_words = table["has_words"].to_numpy()
    keys = bucket_keys(values_of(table["bands"], np.uint64), digests_of(table["digest"]), has_words)
    return keys, places(bundle.number, number, table["row"].to_numpy())
