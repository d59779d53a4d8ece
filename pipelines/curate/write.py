"""The corpus is written: each bundle's documents to kept/ and dropped/, with their fates, and what was counted on the way.

Promise: every row of a piece is written once; a file's name is its piece's number, so a task that is run again writes the same
files; row i of signatures/N is what a later batch is compared with in place of row i of kept/N. Price: a piece in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curate.bundle import Bundle, Piece, piece_of, row_of
from pipelines.curate.chosen import Marks, read_marks, with_marks
from pipelines.curate.config import CurateConfig
from pipelines.curate.document import DROPPED, KEPT, excerpt, replaced
from pipelines.curate.fates import Fates, read_fates
from pipelines.curate.paragraphs import Cuts, cut_documents, read_cuts
from pipelines.curate.piece import read_piece, write_piece
from pipelines.curate.steps import sign, signatures

__all__ = ["PLACES", "write_bundle"]

PLACES = ("kept", "dropped", "signatures")
"""The folders that are written, a file for each piece that has rows for them."""

_NUM_SAMPLES = 20


def write_bundle(
    bundle: Bundle, fates: Sequence[Fates], cuts: Cuts | None, marks: Marks | None, config: CurateConfig, folder: str
) -> list[dict[str, Any]]:
    """Write a bundle's pieces; a row of counts for each piece, reason (none: kept) and kind."""
    fate, marked = read_fates(fates, bundle.number), read_marks(marks, bundle.number)
    cut = None if cuts is None else read_cuts(cuts, bundle.number)
    piece_of_fate = piece_of(fate["place"].to_numpy())
    counted = []
    for number, piece in enumerate(bundle.pieces):
        documents = with_fates(read_piece(piece.text), fate.filter(pa.array(piece_of_fate == number)))
        documents = with_marks(documents, marked, number)
        num_cut = 0
        if cut is not None:
            documents, num_cut = cut_documents(documents, cut, number)
        name = f"{bundle.first_piece + number:05d}.parquet"
        for place, table in _tables(documents, piece, config, changed=num_cut > 0):
            if table.num_rows:
                write_piece(table, f"{folder}/{place}/{name}", compression="zstd")
        counted += _counts(documents, num_cut)
    return counted


def with_fates(documents: pa.Table, fate: pa.Table) -> pa.Table:
    """The documents of a piece with what becomes of them: columns `duplicate_of` and `similarity`, `reason` of those that are dropped."""
    rows = documents.num_rows
    columns: dict[str, list[Any]] = {"reason": documents["reason"].to_pylist(), "duplicate_of": [None] * rows, "similarity": [None] * rows}
    excerpts, texts = documents["excerpt"].to_pylist(), documents["text"]
    for row, told in zip(row_of(fate["place"].to_numpy()).tolist(), fate.to_pylist(), strict=True):
        for name, values in columns.items():
            values[row] = told[name]
        excerpts[row] = excerpt(texts[row].as_py())
    documents = replaced(documents, reason=columns["reason"], excerpt=excerpts)
    for name in ("duplicate_of", "similarity"):
        documents = documents.append_column(DROPPED.field(name), pa.array(columns[name], DROPPED.field(name).type))
    return documents


def _tables(documents: pa.Table, piece: Piece, config: CurateConfig, *, changed: bool) -> Iterator[tuple[str, pa.Table]]:
    """What goes into each of `PLACES`, in order of ids."""
    left = pc.is_null(documents["reason"])
    kept = documents.filter(left)
    order = np.argsort(kept["id"].to_numpy(zero_copy_only=False).astype("S32"))
    kept = kept.take(pa.array(order))
    yield "kept", kept.select(KEPT.names).cast(KEPT)
    yield "dropped", documents.filter(pc.is_valid(documents["reason"])).sort_by("id").select(DROPPED.names).cast(DROPPED)
    if changed:  # texts are not what they were when they were signed
        yield "signatures", signatures(sign(kept, config), config)
        return
    signed = read_piece(piece.signatures)
    signed = signed.take(pa.array(np.searchsorted(signed["row"].to_numpy(), np.flatnonzero(left.to_numpy())))).take(pa.array(order))
    yield "signatures", signed.set_column(0, signed.schema.field("row"), pa.array(np.arange(signed.num_rows)))


def _counts(documents: pa.Table, num_cut: int) -> list[dict[str, Any]]:
    """One row for each reason (none: kept) and kind: how many documents, bytes of text, and the first few dropped by id."""
    size = pc.fill_null(pc.binary_length(documents["text"]), 0)
    place = documents.column_names.index("reason")
    keyed = documents.set_column(place, "reason", pc.fill_null(documents["reason"], "")).append_column("size", size)
    samples: dict[str, list[dict[str, Any]]] = {}
    wanted = ["reason", "id", "source", "ordinal", "source_id", "excerpt", "duplicate_of", "similarity"]
    for row in documents.filter(pc.is_valid(documents["reason"])).select(wanted).sort_by("id").to_pylist():
        if len(examples := samples.setdefault(row["reason"], [])) < _NUM_SAMPLES:
            examples.append(row)
    grouped = keyed.group_by(["reason", "kind"]).aggregate([("id", "count"), ("size", "sum")]).to_pylist()
    return [
        {
            "reason": row["reason"],
            "kind": row["kind"],
            "documents": row["id_count"],
            "num_bytes": row["size_sum"],
            "paragraphs_cut": num_cut if number == 0 else 0,
            "samples": samples.pop(row["reason"], []),
        }
        for number, row in enumerate(grouped)
    ]
