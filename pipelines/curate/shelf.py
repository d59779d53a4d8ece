"""The sets of shingles of candidates, on storage between the tasks that make them and the tasks that compare them.

Promise: a bundle's task reads the texts of its candidates once and writes their sets, those of one group together; a group's
task holds at most `most_bytes` of sets, however many documents the group has: all at once where they fit, else each when it
is asked for. Price: 8 bytes a word of the candidates' texts; documents of one bundle with equal words share a set.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pyarrow as pa

from cluster.patience import patiently
from cluster.storage import resolve
from pipelines.curate.bundle import Bundle, Piece, piece_of, row_of
from pipelines.curate.config import CurateConfig
from pipelines.curate.label import LABEL, Labels
from pipelines.curate.minhash import shingles
from pipelines.curate.normalize import canonical
from pipelines.curate.piece import read_piece, read_rows, whole_file
from pipelines.curate.shards import gather, scatter, shard_of
from pipelines.curate.signature import digests_of, signature_schema
from pipelines.curate.spans import U64, Ints

__all__ = ["Shelf", "shelve", "shelved_schema"]


def shelved_schema(num_bands: int) -> pa.Schema:
    """A candidate: what the rule needs to know of it, and where in its bundle's file its set begins and how many it has."""
    known = signature_schema(num_bands)
    names = ("id", "claim", "digest", "bands")
    return pa.schema([*LABEL, *(known.field(name) for name in names), pa.field("offset", pa.int64()), pa.field("num_grams", pa.int64())])


def shelve(bundle: Bundle, labels: Labels, num_groups: int, config: CurateConfig, folder: str) -> None:
    """Write the candidates of a bundle, dealt to their groups, and their sets."""
    mine = gather(labels.folder, range(labels.num_files), bundle.number, LABEL).sort_by("place")
    number = piece_of(mine["place"].to_numpy())
    tables, sets = [shelved_schema(config.bands).empty_table()], []
    for place, piece in enumerate(bundle.pieces):
        here = mine.filter(pa.array(number == place))
        if here.num_rows:
            table, which = _candidates(here, piece, sets, config)
            tables.append(table.append_column("offset", pa.array(which)).append_column("num_grams", pa.array(which)))
    table = pa.concat_tables(tables)
    which, group = table["offset"].to_numpy(), shard_of(table["component"].to_numpy(), num_groups)
    offset, size = _write_sets(sets, which, group, f"{folder}/shelf/{bundle.number:06d}.sets")
    table = table.drop_columns(["offset", "num_grams"]).append_column("offset", pa.array(offset)).append_column("num_grams", pa.array(size))
    scatter(table, group, num_groups, f"{folder}/shelf", bundle.number)


def _candidates(labelled: pa.Table, piece: Piece, sets: list[U64], config: CurateConfig) -> tuple[pa.Table, Ints]:
    """The signatures of a piece's candidates, and the number in `sets`, to which new ones are added, of each one's set (or -1)."""
    signatures = read_piece(piece.signatures, ["row", "id", "claim", "digest", "bands", "has_words"])
    wanted = row_of(labelled["place"].to_numpy())
    signatures = signatures.take(pa.array(np.searchsorted(signatures["row"].to_numpy(), wanted)))
    worded = np.flatnonzero(signatures["has_words"].to_numpy())
    which = np.full(wanted.size, -1, np.int64)
    if worded.size:
        _, first, inverse = np.unique(digests_of(signatures["digest"])[worded], return_index=True, return_inverse=True)
        in_order = np.sort(first)
        texts = read_rows(piece.text, wanted[worded[in_order]], ["text"])["text"].to_pylist()
        which[worded] = len(sets) + np.searchsorted(in_order, first)[inverse]
        sets.extend(np.unique(grams) for grams in shingles([canonical(text) for text in texts], config.ngram))
    columns = [labelled[name] for name in LABEL.names] + [signatures[name] for name in ("id", "claim", "digest", "bands")]
    return pa.table(columns, [*LABEL.names, "id", "claim", "digest", "bands"]), which


@patiently
def _write_sets(sets: list[U64], which: Ints, group: Ints, uri: str) -> tuple[Ints, Ints]:
    """Write the sets group by group; for each document where its set begins and how many it has."""
    order = np.argsort(group, kind="stable")
    used = which[order][which[order] >= 0]
    _, first = np.unique(used, return_index=True)
    written = used[np.sort(first)]
    sizes = np.array([len(s) for s in sets] + [0], np.int64)  # the last is that of -1
    starts = np.zeros(sizes.size, np.int64)
    starts[written] = np.cumsum(sizes[written]) - sizes[written]
    with whole_file(uri) as stream:
        for number in written.tolist():
            stream.write(sets[number].data)
    return starts[which], sizes[which]


class Shelf:
    """The sets of a group's documents: `shelf(i)` is that of document i, sorted and without repeats."""

    def __init__(self, folder: str, bundle: Ints, offset: Ints, num_grams: Ints, most_bytes: int) -> None:
        self._filesystem, self._folder = resolve(folder)
        self._bundle, self._offset, self._size = bundle, offset, num_grams
        self._most = most_bytes // 8
        self._held: OrderedDict[tuple[int, int], U64] = OrderedDict()
        self._num_held = 0
        self.num_reads = 0
        if num_grams.sum() <= self._most:
            self._read_all()

    def __call__(self, place: int) -> U64:
        key = (int(self._bundle[place]), int(self._offset[place]))
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        return self._hold(key, self._read(key, int(self._size[place])))

    def _hold(self, key: tuple[int, int], found: U64) -> U64:
        self._held[key] = found
        self._num_held += found.size
        while self._num_held > self._most and len(self._held) > 1:
            self._num_held -= self._held.popitem(last=False)[1].size
        return found

    @patiently
    def _read(self, key: tuple[int, int], size: int) -> U64:
        self.num_reads += 1
        with self._filesystem.open_input_file(f"{self._folder}/{key[0]:06d}.sets") as stream:
            return np.frombuffer(stream.read_at(8 * size, 8 * key[1]), np.uint64)

    def _read_all(self) -> None:
        """One read for each bundle: its sets of this group stand together."""
        for bundle in np.unique(self._bundle).tolist():
            mine = np.flatnonzero((self._bundle == bundle) & (self._size > 0))
            if mine.size:
                begin = int(self._offset[mine].min())
                block = self._read((bundle, begin), int((self._offset + self._size)[mine].max()) - begin)
                for place in mine.tolist():
                    start = int(self._offset[place]) - begin
                    self._held[bundle, start + begin] = block[start : start + int(self._size[place])]
