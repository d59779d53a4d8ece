"""Repeated paragraphs: a paragraph of prose stays in the first few documents that have it and is cut from the others.

Promise: of the documents that are left, in survivor order, the first `paragraph_documents` with a paragraph (equal in its
canonical words) keep it; a document from which everything was cut is dropped; what is cut depends on documents and
configuration alone. Paragraphs are parted by blank lines; one of fewer than five words (a heading, a rule) is never cut, nor
is code. Documents of corpora to be compared `against` are not counted: only their signatures are known. Price: 60 bytes a
paragraph through a shuffle, and the texts are read once more.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import xxhash

from pipelines.curate.bundle import Bundle, Piece, bundle_of, piece_of, places, row_of
from pipelines.curate.config import CurateConfig
from pipelines.curate.document import excerpt, replaced
from pipelines.curate.fates import Fates, read_fates
from pipelines.curate.normalize import canonical, clean
from pipelines.curate.piece import read_piece
from pipelines.curate.shards import gather, scatter, shard_of
from pipelines.curate.signature import fixed_bytes, values_of
from pipelines.curate.spans import Ints
from pipelines.curate.tasks import in_tasks

__all__ = ["EMPTIED", "Cuts", "cut_documents", "cut_text", "find_repeated", "paragraph_keys", "read_cuts"]

EMPTIED = "duplicate.paragraphs"
"""Reason of a document of which nothing was left."""

_BLANK_LINES = re.compile(r"(\n(?:[ \t]*\n)+)")
_FEWEST_WORDS = 5
_PARAGRAPH = pa.schema({"key": pa.binary(16), "place": pa.int64(), "claim": pa.float64(), "id": pa.string()})
_CUT = pa.schema({"place": pa.int64(), "key": pa.binary(16)})


@dataclass(frozen=True, slots=True)
class Cuts:
    """Which paragraphs to cut from which documents."""

    folder: str
    """Files 0..num_files-1, each with a batch for each bundle."""
    num_files: int
    sure: str
    """A folder with a file for each bundle: what others of the bundle left no place for."""


def paragraph_keys(text: str) -> list[bytes | None]:
    """For each paragraph the hash of its canonical words; None for one that is too short to be cut.

    >>> [key is None for key in paragraph_keys("A heading\\n\\nAnd a paragraph of enough words.")]
    [True, False]
    """
    keys: list[bytes | None] = []
    for paragraph in _BLANK_LINES.split(text)[::2]:
        words = canonical(paragraph)
        keys.append(xxhash.xxh3_128_digest(words.encode()) if words.count(" ") + 1 >= _FEWEST_WORDS else None)
    return keys


def cut_text(text: str, keys: Collection[bytes]) -> tuple[str, int]:
    """The text without the paragraphs of these keys, and how many were cut."""
    parts = _BLANK_LINES.split(text)
    left, cut = [], 0
    for place, key in enumerate(paragraph_keys(text)):
        if key in keys:
            cut += 1
        else:
            left += parts[2 * place : 2 * place + 2]  # a paragraph and the blank lines after it
    return (clean("".join(left)), cut) if cut else (text, 0)


def find_repeated(bundles: Sequence[Bundle], fates: Sequence[Fates], config: CurateConfig, folder: str) -> Cuts:
    """Which paragraphs of the documents that are left are to be cut. Ray must be attached."""
    new = [bundle for bundle in bundles if not bundle.settled]
    num_shards = max(1, -(-sum(bundle.num_chars for bundle in new) // config.task_bytes))
    most = config.paragraph_documents
    in_tasks(_deal_paragraphs, new, fates, num_shards, most, folder)
    in_tasks(_choose, range(num_shards), len(new), most, folder)
    return Cuts(f"{folder}/cuts", num_shards, f"{folder}/sure")


def read_cuts(cuts: Cuts, bundle: int) -> dict[int, dict[int, set[bytes]]]:
    """For each piece of the bundle, and each row there that loses paragraphs, their keys."""
    table = pa.concat_tables([gather(cuts.folder, range(cuts.num_files), bundle, _CUT), gather(cuts.sure, [bundle], 0, _CUT)])
    place = table["place"].to_numpy()
    found: dict[int, dict[int, set[bytes]]] = {}
    for piece, row, key in zip(piece_of(place).tolist(), row_of(place).tolist(), table["key"].to_pylist(), strict=True):
        found.setdefault(piece, {}).setdefault(row, set()).add(key)
    return found


def cut_documents(documents: pa.Table, cut: dict[int, dict[int, set[bytes]]], piece: int) -> tuple[pa.Table, int]:
    """The documents of a piece without those paragraphs, and how many were cut; what is emptied is dropped."""
    names = ("text", "reason", "excerpt", "num_chars", "num_words")
    columns = {name: documents[name].to_pylist() for name in names}
    total = 0
    for row, keys in cut.get(piece, {}).items():
        whole = columns["text"][row]
        text, num_cut = cut_text(whole, keys)
        total += num_cut
        columns["num_chars"][row], columns["num_words"][row] = len(text), len(text.split())
        columns["text"][row] = text or None
        if not text:
            columns["reason"][row], columns["excerpt"][row] = EMPTIED, excerpt(whole)
    return (replaced(documents, **columns), total) if total else (documents, 0)


def _deal_paragraphs(bundle: Bundle, fates: Sequence[Fates], num_shards: int, most: int, folder: str) -> None:
    """The paragraphs of a bundle's documents that are left, dealt by key; of each those only that the bundle's others leave a place for.

    So a notice under every document of a corpus fills no shard.
    """
    fate = read_fates(fates, bundle.number)["place"].to_numpy()
    tables = [_paragraphs_of(bundle, number, piece, fate) for number, piece in enumerate(bundle.pieces)]
    table = pa.concat_tables([_PARAGRAPH.empty_table(), *tables])
    rank = _ranks(table)
    sure = np.flatnonzero(rank >= most)
    scatter(table.select(_CUT.names).take(pa.array(sure)), np.zeros(sure.size, np.int64), 1, f"{folder}/sure", bundle.number)
    table = table.filter(pa.array(rank < most))
    scatter(table, _shard_of_keys(table, num_shards), num_shards, f"{folder}/paragraphs", bundle.number)


def _paragraphs_of(bundle: Bundle, number: int, piece: Piece, dropped: np.ndarray) -> pa.Table:
    signed = read_piece(piece.signatures, ["row", "id", "claim"])
    place = places(bundle.number, number, signed["row"].to_numpy())
    documents = read_piece(piece.text, ["text", "kind"]).take(signed["row"])
    prose = np.array([kind == "prose" for kind in documents["kind"].to_pylist()], bool)
    left = np.flatnonzero(~np.isin(place, dropped) & prose)
    texts = documents["text"].take(pa.array(left)).to_pylist()
    keys = [sorted({key for key in paragraph_keys(text) if key is not None}) for text in texts]
    owner = pa.array(np.repeat(left, [len(own) for own in keys]))
    columns = [pa.array(place).take(owner), signed["claim"].take(owner), signed["id"].take(owner)]
    return pa.table([fixed_bytes([key for own in keys for key in own], 16), *columns], _PARAGRAPH)


def _shard_of_keys(table: pa.Table, num_shards: int) -> np.ndarray:
    return shard_of(values_of(table["key"], np.uint64)[:, 0], num_shards)


def _choose(shard: int, num_bundles: int, most: int, folder: str) -> None:
    """Of a shard's paragraphs those that are one too many, dealt to their bundles."""
    table = gather(f"{folder}/paragraphs", range(num_bundles), shard, _PARAGRAPH)
    cut = table.select(_CUT.names).filter(pa.array(_ranks(table) >= most))
    scatter(cut, bundle_of(cut["place"].to_numpy()), num_bundles, f"{folder}/cuts", shard)


def _ranks(table: pa.Table) -> Ints:
    """For each row how many documents before it in survivor order have its paragraph."""
    halves = values_of(table["key"], np.uint64)
    ids = table["id"].to_numpy(zero_copy_only=False).astype("S32")
    order = np.lexsort((ids, table["claim"].to_numpy(), halves[:, 1], halves[:, 0]))
    halves = halves[order]
    begins = np.flatnonzero(np.concatenate(([True], (halves[1:] != halves[:-1]).any(axis=1)))) if order.size else order
    rank = np.empty(order.size, np.int64)
    rank[order] = np.arange(order.size) - np.repeat(begins, np.diff(begins, append=order.size))
    return rank
