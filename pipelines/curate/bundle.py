"""Where documents are while a corpus is made: pieces on storage, in bundles that one task works through, each row with a number.

Promise: a document's place is one int64 that says its bundle, its piece there and its row, so whatever is found out about it
finds the way back. Price: at most 4,096 pieces in a bundle and 2^28 rows in a piece, which no setting comes near.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.curate.spans import Ints

__all__ = ["Bundle", "Piece", "bundle_of", "bundled", "piece_of", "places", "row_of"]

_ROW_BITS, _PIECE_BITS = 28, 12
_MOST_PIECES = 1 << _PIECE_BITS


@dataclass(frozen=True, slots=True)
class Piece:
    """A parquet file of documents, and one beside it that says what duplicates are found by."""

    text: str
    """URI of the documents."""
    signatures: str
    """URI of a row for each document that is left: its row in `text`, id, claim, size, digest and bands."""
    num_documents: int
    """Of the rows in `signatures`."""
    num_chars: int
    """Of the text that is left, about."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """Pieces that one task works through, in order."""

    number: int
    era: int
    """Earlier eras go first in survivor order: the corpora of `against` in their order, then the new documents."""
    settled: bool
    """Whether its documents stay whatever else there is."""
    first_piece: int
    """The number that its first piece's files have in the corpus."""
    pieces: tuple[Piece, ...]

    @property
    def num_documents(self) -> int:
        return sum(piece.num_documents for piece in self.pieces)

    @property
    def num_chars(self) -> int:
        return sum(piece.num_chars for piece in self.pieces)


def bundled(new: Sequence[Piece], old: Iterable[Sequence[Piece]], most_chars: int) -> list[Bundle]:
    """The new pieces, then those of each old corpus, in bundles of at most `most_chars` characters (or one piece)."""
    eras = [(pieces, True) for pieces in old]
    bundles: list[Bundle] = []
    for era, (pieces, settled) in ((len(eras), (new, False)), *enumerate(eras)):
        begin = 0
        while begin < len(pieces):
            end, chars = begin + 1, pieces[begin].num_chars
            while end < min(len(pieces), begin + _MOST_PIECES) and chars + pieces[end].num_chars <= most_chars:
                chars += pieces[end].num_chars
                end += 1
            bundles.append(Bundle(len(bundles), era, settled, begin, tuple(pieces[begin:end])))
            begin = end
    return bundles


def places(bundle: int, piece: int, rows: Ints) -> Ints:
    """The places of rows of a bundle's piece.

    >>> place = places(3, 1, np.array([7]))
    >>> int(bundle_of(place)[0]), int(piece_of(place)[0]), int(row_of(place)[0])
    (3, 1, 7)
    """
    assert piece < _MOST_PIECES, f"piece {piece} of a bundle"
    found: Ints = np.asarray(rows, np.int64) | np.int64((bundle << _PIECE_BITS | piece) << _ROW_BITS)
    return found


def bundle_of(place: Ints) -> Ints:
    """The number of the bundle."""
    return place >> np.int64(_ROW_BITS + _PIECE_BITS)


def piece_of(place: Ints) -> Ints:
    """The number of the piece in its bundle."""
    return place >> np.int64(_ROW_BITS) & np.int64(_MOST_PIECES - 1)


def row_of(place: Ints) -> Ints:
    """The row in the piece."""
    return place & np.int64((1 << _ROW_BITS) - 1)
