"""Evaluation sets, to be kept out of a corpus: their items, and where their words stand in other texts.

Promise: a text is said to share a passage with an item only if the passage's words are there one after the other (a hash finds,
the words decide), and no shared n-gram is missed. Words are those of `normalize.canonical`: case, spacing and punctuation do not
hide a passage. N-grams without a letter are nobody's (1 to 13 stands in a test and in a thousand tables). Of an item none of whose fields
has n words, those that have `shortest` are looked for whole. Price: some 40 ns a character and a table of 4 MB in each task; the items
themselves are in memory. After: GPT-3's appendix C (arXiv 2005.14165), 13-grams.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as arrow_fs

from cluster.storage import resolve
from pipelines.curate.minhash import shingles
from pipelines.curate.normalize import canonical, clean
from pipelines.curate.spans import U64, Bools, Ints

__all__ = ["Evaluations", "Item", "Shared", "read_items"]

_FLAG_BITS = 22


@dataclass(frozen=True, slots=True)
class Item:
    """One row or paragraph of an evaluation set."""

    set: str
    """Name of the set: its file's, up to the first dot."""
    name: str
    """The row's number in the file, from 0, and its task_id, if it has one."""
    passages: tuple[str, ...]
    """The canonical texts of its fields."""


@dataclass(frozen=True, slots=True)
class Shared:
    """A run of words that a text shares with an item."""

    item: int
    """Place of the item in `Evaluations.items`."""
    begin: int
    """First word of the run in the text's canonical form."""
    end: int
    """The word after its last."""


def read_items(uris: Sequence[str], fields: Sequence[str] = ()) -> list[Item]:
    """The items of evaluation files: rows of parquet and jsonl (.gz, .zst), paragraphs of .txt and .md.

    `fields`: which keys or columns to read; none: all that hold text, or lists of it, however deep. Raises ValueError for what
    cannot be read, and for two sets of one name.
    """
    items: list[Item] = []
    for uri in uris:
        name = PurePosixPath(uri).name.split(".")[0]
        if any(item.set == name for item in items):
            raise ValueError(f"{uri}: another evaluation set is called {name!r} too; rename one of the files")
        found = [Item(name, label, passages) for label, passages in _rows(uri, fields) if passages]
        if not found:
            raise ValueError(f"{uri}: holds no text to look for{f' under {chr(44).join(fields)}' if fields else ''}")
        items += found
    return items


class Evaluations:
    """An index of the items' n-grams."""

    def __init__(self, items: Sequence[Item], *, ngram: int = 13, shortest: int = 8, common: frozenset[int] = frozenset()) -> None:
        """`common`: hashes of n-grams that count for nothing."""
        self.items, self.ngram, self.shortest, self.common = tuple(items), ngram, shortest, common
        long, short, self.too_short = _sorted_out(items, ngram, shortest)
        self._long = _Grams.of(long, ngram, common, lettered=True)
        self._short = _Grams.of(short, shortest, frozenset()) if short else None  # found by their first words, then looked at whole

    def shared(self, texts: Sequence[str]) -> list[list[Shared]]:
        """For each canonical text the runs of words it shares with items, by item and place; runs that touch are one."""
        found: list[list[Shared]] = [[] for _ in texts]
        for grams, whole in ((self._long, False), (self._short, True)):
            if grams is not None:
                for place, shared in grams.matches(texts, whole):
                    found[place].append(shared)
        return [_joined(each) for each in found]

    def documents_by_gram(self, texts: Sequence[str]) -> dict[int, int]:
        """How many of the canonical texts hold each n-gram of the items, by its hash; those that none holds are left out."""
        held: dict[int, int] = {}
        for grams in shingles(texts, self.ngram):
            for gram in np.unique(grams[self._long.known(grams)]).tolist():
                held[gram] = held.get(gram, 0) + 1
        return held

    def without(self, common: frozenset[int]) -> Evaluations:
        """The same index, the `common` grams left out."""
        return Evaluations(self.items, ngram=self.ngram, shortest=self.shortest, common=common)


@dataclass(frozen=True, slots=True)
class _Passage:
    item: int
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Grams:
    """The n-grams of passages, by hash."""

    passages: tuple[_Passage, ...]
    ngram: int
    hashes: U64
    """Sorted [m]; a gram that stands in several passages, or twice in one, is there as often."""
    passage: Ints
    start: Ints
    """Its first word there."""
    flags: Bools
    """[2^22] whether some hash has these upper bits: most grams of most texts are passed over by one look-up."""

    @classmethod
    def of(cls, passages: Sequence[_Passage], ngram: int, common: frozenset[int], *, lettered: bool = False) -> _Grams:
        """`ngram`: no passage has fewer words; `lettered`: only those with a letter in them."""
        each = [(i, hashes) for i, hashes in enumerate(shingles([" ".join(p.words) for p in passages], ngram))]
        hashes = np.concatenate([np.zeros(0, np.uint64), *(h for _, h in each)])
        passage = np.repeat(np.array([i for i, _ in each], np.int64), [h.size for _, h in each])
        start = np.concatenate([np.zeros(0, np.int64), *(np.arange(h.size) for _, h in each)])
        wanted = ~np.isin(hashes, np.array(sorted(common), np.uint64))
        if lettered:
            wanted &= np.concatenate([np.zeros(0, bool), *(_lettered(p.words, ngram) for p in passages)])
        order = np.flatnonzero(wanted)[np.argsort(hashes[wanted], kind="stable")]
        flags = np.zeros(1 << _FLAG_BITS, bool)
        flags[hashes[order] >> np.uint64(64 - _FLAG_BITS)] = True
        return cls(tuple(passages), ngram, hashes[order], passage[order], start[order], flags)

    def known(self, grams: U64) -> Ints:
        """Places of the grams whose hash is an item's."""
        maybe = np.flatnonzero(self.flags[grams >> np.uint64(64 - _FLAG_BITS)])
        if not maybe.size:
            return maybe
        at = np.minimum(np.searchsorted(self.hashes, grams[maybe]), self.hashes.size - 1)
        found: Ints = maybe[self.hashes[at] == grams[maybe]]
        return found

    def matches(self, texts: Sequence[str], whole: bool) -> Iterator[tuple[int, Shared]]:
        """(text, run) of each n-gram of the texts that is a passage's too, or (`whole`) of each whole passage, word by word."""
        for place, (text, grams) in enumerate(zip(texts, shingles(texts, self.ngram), strict=True)):
            known = self.known(grams)
            if known.size:
                words = text.split(" ")
                for begin in known.tolist():
                    yield from ((place, shared) for shared in self._at(words, begin, grams[begin], whole))

    def _at(self, words: list[str], begin: int, gram: np.uint64, whole: bool) -> Iterator[Shared]:
        first, last = np.searchsorted(self.hashes, gram, "left"), np.searchsorted(self.hashes, gram, "right")
        told: set[int] = set()  # an item may hold the same gram a thousand times, and the text, too
        for number, start in zip(self.passage[first:last].tolist(), self.start[first:last].tolist(), strict=True):
            passage = self.passages[number]
            if start if whole else passage.item in told:
                continue  # a whole passage is found by its beginning, an item once
            wanted = passage.words if whole else passage.words[start : start + self.ngram]
            if tuple(words[begin : begin + len(wanted)]) == wanted:
                told.add(passage.item)
                yield Shared(passage.item, begin, begin + len(wanted))


def _sorted_out(items: Sequence[Item], ngram: int, shortest: int) -> tuple[list[_Passage], list[_Passage], list[int]]:
    """Passages to be looked for by n-grams, those of short items to be looked for whole, and the items too short for either.

    A passage without a letter is looked for in neither way.
    """
    long: list[_Passage] = []
    short: list[_Passage] = []
    too_short: list[int] = []
    for number, item in enumerate(items):
        fields = [tuple(passage.split(" ")) for passage in item.passages if _has_letter(passage)]
        enough = [_Passage(number, words) for words in fields if len(words) >= ngram]
        whole = [_Passage(number, words) for words in fields if len(words) >= shortest]
        if enough:
            long += enough
        elif whole:
            short += whole
        else:
            too_short.append(number)
    return long, short, too_short


def _has_letter(text: str) -> bool:
    return any(map(str.isalpha, text))


def _lettered(words: Sequence[str], ngram: int) -> Bools:
    """Whether a letter stands in the n-gram that begins at each word.

    >>> _lettered(["x", "1", "2", "3"], 2).tolist()
    [True, False, False]
    """
    upto = np.cumsum([0, *map(_has_letter, words)])
    found: Bools = upto[ngram:] > upto[:-ngram]
    return found


def _joined(runs: list[Shared]) -> list[Shared]:
    """By item and place, those that touch or overlap as one."""
    joined: list[Shared] = []
    for run in sorted(runs, key=lambda r: (r.item, r.begin, r.end)):
        last = joined[-1] if joined else None
        if last is not None and last.item == run.item and run.begin <= last.end:
            joined[-1] = replace(last, end=max(last.end, run.end))
        else:
            joined.append(run)
    return joined


def _rows(uri: str, fields: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Of each row or paragraph its name, and the canonical texts of its fields that have words."""
    for number, row in enumerate(_read(uri)):
        if isinstance(row, dict):
            label = f"{number} ({row['task_id']})" if "task_id" in row else str(number)
            values: list[Any] = [row.get(name) for name in fields] if fields else list(row.values())
        else:
            label, values = str(number), [row]
        yield label, tuple(found for text in _texts(values) if (found := canonical(clean(text))))


def _texts(value: Any) -> Iterator[str]:
    """The strings in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _read(uri: str) -> Iterator[Any]:
    """The rows of parquet and jsonl, the paragraphs of a text."""
    filesystem, path = resolve(uri)
    if (kind := filesystem.get_file_info(path).type) == arrow_fs.FileType.Directory:
        raise ValueError(f"{uri}: is a folder; name its files, an evaluation set each")
    if kind != arrow_fs.FileType.File:
        raise ValueError(f"{uri}: no such file; give an evaluation set as jsonl (.gz, .zst), parquet, txt or md")
    suffix = next((s for s in PurePosixPath(path).suffixes if s in (".parquet", ".jsonl", ".txt", ".md")), None)
    if suffix is None:
        raise ValueError(f"{uri}: not an evaluation set that can be read; convert it to jsonl (.gz, .zst), parquet or txt")
    try:
        if suffix == ".parquet":
            with filesystem.open_input_file(path) as stream:
                yield from pq.read_table(stream).to_pylist()
            return
        with filesystem.open_input_stream(path, compression="detect") as stream:
            text = stream.readall().decode()
        if suffix == ".jsonl":
            yield from (json.loads(line) for line in text.split("\n") if line.strip())
        else:
            yield from (paragraph for paragraph in clean(text).split("\n\n") if paragraph.strip())
    except (pa.ArrowInvalid, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{uri}: cannot be read ({str(error).splitlines()[0]}); mend the file") from None
