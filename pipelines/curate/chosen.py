"""Selection and order inside a run of curation: what the duplicates left is chosen from, and the corpus is told.

Promise: a document that is not chosen gets a fate (`not_selected`), one that is gets its place in the order and its score; both
lie on storage, where the task that writes a bundle finds its own. Price: one more look at the pieces' ids, and what select.py asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.figure import Figure
from cluster.storage import digest_of
from pipelines.curate.bundle import Bundle, bundle_of, piece_of, places, row_of
from pipelines.curate.config import CurateConfig
from pipelines.curate.document import MARKED
from pipelines.curate.fates import FATE, Fates, read_fates, write_fates
from pipelines.curate.passes import Part
from pipelines.curate.piece import read_piece
from pipelines.curate.select import Choice, choose, figures, summary
from pipelines.curate.shards import gather, scatter
from pipelines.curate.sources import find_files
from pipelines.curate.spans import Ints
from pipelines.curate.tasks import in_tasks
from pipelines.vocabulary import open_tokenizer

__all__ = ["NOT_SELECTED", "Chosen", "Marks", "choice_inputs", "choose_documents", "read_marks", "told", "with_marks"]

NOT_SELECTED = "not_selected"
"""Reason of a document that did not fit the budget."""

_MARK = pa.schema([pa.field("place", pa.int64()), *MARKED])


@dataclass(frozen=True, slots=True)
class Marks:
    """A folder with a file that has a batch for each bundle: the scores of its documents, and their places in the order."""

    folder: str


@dataclass(frozen=True, slots=True)
class Chosen:
    """What selection and order made of the documents that were left."""

    fates: Fates
    marks: Marks
    choice: Choice


def choice_inputs(config: CurateConfig) -> dict[str, str]:
    """Digests of what is chosen by: target, models, tokenizer. ValueError for one that cannot be used."""
    from train.model_folder import open_model  # torch: the tasks that only read this file's other functions do without

    found = {}
    if config.select_target:
        found["select_target"] = digest_of([[f.uri, f.num_bytes, f.modified_ns] for f in find_files(config.select_target)])
    for name in ("select_model", "order_model"):
        if folder := getattr(config, name):
            found[name] = open_model(folder)[1]
    if config.select_tokens is not None and config.select_tokenizer:
        found["select_tokenizer"] = digest_of(open_tokenizer(Path(config.select_tokenizer)).serialized)
    return found


def choose_documents(bundles: Sequence[Bundle], fates: Sequence[Fates], config: CurateConfig, folder: str) -> Chosen:
    """Choose among the new documents that have no fate yet, and put them in order. Ray must be attached."""
    new = [bundle for bundle in bundles if not bundle.settled]
    rows = in_tasks(_left, new, fates)
    parts = [
        Part(piece.text, left) for bundle, each in zip(new, rows, strict=True) for piece, left in zip(bundle.pieces, each, strict=True)
    ]
    choice = choose(parts, config, f"{folder}/covering")
    place = np.concatenate(
        [
            np.zeros(0, np.int64),
            *(places(bundle.number, n, left) for bundle, each in zip(new, rows, strict=True) for n, left in enumerate(each)),
        ]
    )
    chosen = Chosen(Fates(f"{folder}/not_selected", 1), Marks(f"{folder}/marks"), choice)
    out = place[~choice.chosen]
    columns = {"place": out, "reason": [NOT_SELECTED] * out.size, "duplicate_of": [None] * out.size, "similarity": [None] * out.size}
    write_fates(pa.table(columns, FATE), chosen.fates, 0, len(new))
    marks = {
        "place": place,
        "score": pa.array(choice.score, mask=np.isnan(choice.score)),
        "order": pa.array(choice.order, mask=choice.order < 0),
    }
    scatter(pa.table(marks, _MARK), bundle_of(place), len(new), chosen.marks.folder, 0)
    return chosen


def read_marks(marks: Marks | None, bundle: int) -> pa.Table:
    """The marks of a bundle's documents; none where nothing was chosen."""
    return _MARK.empty_table() if marks is None else gather(marks.folder, [0], bundle, _MARK)


def with_marks(documents: pa.Table, marks: pa.Table, piece: int) -> pa.Table:
    """The documents of a bundle's piece, in order, with the columns of `MARKED`: null for those without a mark."""
    at = marks["place"].to_numpy()
    mine = np.flatnonzero(piece_of(at) == piece)
    taken = np.full(documents.num_rows, -1, np.int64)
    taken[row_of(at[mine])] = mine
    for field in MARKED:
        column = marks[field.name].combine_chunks().take(pa.array(taken, mask=taken < 0))
        documents = documents.append_column(field, column)
    return documents


def told(config: CurateConfig, chosen: Chosen | None) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Metrics and figures of selection and order; nothing where neither is asked for."""
    if chosen is None:
        return {}, {}
    return {"selection": summary(chosen.choice, config)}, figures(chosen.choice, config)


def _left(bundle: Bundle, fates: Sequence[Fates]) -> list[Ints]:
    """For each piece of the bundle the rows of the documents that have a text and no fate."""
    gone = read_fates(fates, bundle.number)["place"].to_numpy()
    left = []
    for number, piece in enumerate(bundle.pieces):
        rows: Any = read_piece(piece.signatures, ["row"])["row"].to_numpy()
        left.append(np.setdiff1d(rows, row_of(gone[piece_of(gone) == number])))
    return left
