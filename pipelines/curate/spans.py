"""Texts as arrays: runs of characters, their hashes and their repeats, for whole groups of documents at a time.

Promise: a group of texts becomes one numpy array of characters (a byte each where all is ASCII, else a code point each), a
word or a line a span [start, end) of it, and a span's hash depends on its characters alone, not on its place.
Price: no Python object for a word; some ten passes of a nanosecond a character. How: the hash of a span is the difference of
one running polynomial over the group (Karp and Rabin) times an inverse power of the base, modulo 2^64, then mixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["U64", "Bools", "Codes", "Ints", "SpanHashes", "codes_of", "groups", "mix", "repeats", "runs", "span_hashes"]

U64 = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.uint8] | npt.NDArray[np.uint32]

_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64
_BASE_INVERSE = pow(_BASE, -1, 1 << 64)
_GROUP_CHARS = 1 << 20
_tables: list[U64] = []


def groups(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in order, in groups of about a million characters: what fits the caches."""
    start = 0
    while start < len(texts):
        end, chars = start + 1, len(texts[start])
        while end < len(texts) and chars + len(texts[end]) < _GROUP_CHARS:
            chars += len(texts[end])
            end += 1
        yield texts[start:end]
        start = end


def codes_of(text: str) -> Codes:
    """The characters as numbers: bytes if all are ASCII, else code points."""
    if text.isascii():
        return np.frombuffer(text.encode(), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def runs(inside: Bools) -> tuple[Ints, Ints]:
    """Starts and ends of the runs of True.

    >>> [x.tolist() for x in runs(np.array([True, True, False, True]))]
    [[0, 3], [2, 4]]
    """
    padded = np.zeros(inside.size + 2, bool)
    padded[1:-1] = inside
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return edges[::2].copy(), edges[1::2].copy()


def span_hashes(codes: Codes, starts: Ints, ends: Ints) -> U64:
    """A 64-bit hash of each span's characters."""
    return SpanHashes(codes)(starts, ends)


class SpanHashes:
    """The running polynomial of a group, from which the hashes of any spans are taken: `span_hashes`, several times over the same codes."""

    def __init__(self, codes: Codes) -> None:
        powers, self._inverses = _powers(codes.size)
        self._running = np.zeros(codes.size + 1, np.uint64)
        terms = codes + np.uint64(1)
        terms *= powers
        np.cumsum(terms, out=self._running[1:])

    def __call__(self, starts: Ints, ends: Ints) -> U64:
        return mix((self._running[ends] - self._running[starts]) * self._inverses[starts])


def mix(values: U64) -> U64:
    """A bijection that spreads every bit over all of them (the finaliser of splitmix64)."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def repeats(keys: U64) -> tuple[Bools, Ints, Ints]:
    """For each key whether it stood before; and for each distinct key the place of its first and how often it stands.

    >>> [x.tolist() for x in repeats(np.array([7, 9, 7, 7], np.uint64))]
    [[False, False, True, True], [0, 1], [3, 1]]
    """
    if not keys.size:
        return np.zeros(0, bool), np.zeros(0, np.int64), np.zeros(0, np.int64)
    order = np.argsort(keys)
    ordered = keys[order]
    begins = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    first = np.minimum.reduceat(order, begins)
    again = np.ones(keys.size, bool)
    again[first] = False
    return again, first, np.diff(begins, append=keys.size)


def _powers(size: int) -> tuple[U64, U64]:
    """The first `size` powers of the base and of its inverse, modulo 2^64; the tables grow to the longest group seen."""
    if not _tables or _tables[0].size < size:
        _tables.clear()
        for base in (_BASE, _BASE_INVERSE):
            factors = np.full(max(size, 2 * _GROUP_CHARS), base, np.uint64)
            factors[0] = 1
            _tables.append(np.multiply.accumulate(factors))
    return _tables[0][:size], _tables[1][:size]
