"""Texts as bags of hashed words and word pairs: what importance weights, rarity and diversity are reckoned from.

Promise: a text's features depend on the text alone; counts are integers and scores sums of whole multiples of 2^-20, so no
figure depends on the order of the documents or on the pieces they are read in. A word is a run of letters and digits, a run
of other signs, or one ideograph; letters are lower-cased; pairs never cross documents. Price: some 40 ns a character on one
core, no Python object for a word. After: DSIR's hashed n-grams (arXiv 2302.03169).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from pipelines.curate.spans import U64, Codes, Ints, codes_of, groups, mix, span_hashes

__all__ = ["FIXED_POINT", "counts", "features", "fixed", "sketches", "totals"]

FIXED_POINT = 1 << 20
"""Scores of features are whole multiples of one part in so many: their sums are exact, whatever the order."""

_SPACE, _WORD, _SIGN, _IDEOGRAPH = 0, 1, 2, 3
_IDEOGRAPHS = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF))
_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)  # odd, and unlike: a pair is not its reverse


def features(texts: Sequence[str], buckets: int, *, pairs: bool = True) -> Iterator[tuple[int, Ints, Ints]]:
    """For each group of texts the place of its first, the buckets of all features [f], and each one's text within the group [f].

    >>> [(first, owner.tolist()) for first, _, owner in features(["To be, or", "not"], 100)]
    [(0, [0, 0, 0, 0, 1, 0, 0, 0])]
    """
    first = 0
    for group in groups(texts):
        hashes, owner = _words(group)
        if pairs:
            inside = owner[1:] == owner[:-1]
            both = mix(hashes[:-1] * _FIRST + hashes[1:] * _SECOND)[inside]
            hashes, owner = np.concatenate((hashes, both)), np.concatenate((owner, owner[1:][inside]))
        yield first, ((hashes >> np.uint64(32)) * np.uint64(buckets) >> np.uint64(32)).astype(np.int64), owner
        first += len(group)


def counts(texts: Sequence[str], buckets: int, *, pairs: bool = True) -> Ints:
    """How often each bucket's features stand in the texts [buckets].

    >>> int(counts(["a b", "a"], 1000).sum()), int(counts(["a b", "a"], 1000, pairs=False).max())
    (4, 2)
    """
    total = np.zeros(buckets, np.int64)
    for _, bucket, _ in features(texts, buckets, pairs=pairs):
        total += np.bincount(bucket, minlength=buckets)
    return total


def fixed(scores: npt.NDArray[np.float64]) -> Ints:
    """Scores of buckets as multiples of 1 / FIXED_POINT."""
    found: Ints = np.rint(scores * FIXED_POINT).astype(np.int64)
    return found


def totals(texts: Sequence[str], scores: Ints, *, pairs: bool = True) -> tuple[npt.NDArray[np.float64], Ints]:
    """For each text the sum of its features' scores [n] (`scores` [buckets]: of `fixed`) and their number [n].

    >>> values, number = totals(["a a", "b", ""], fixed(np.full(10, 0.5)))
    >>> values.tolist(), number.tolist()
    ([1.5, 0.5, 0.0], [3, 1, 0])
    """
    found, number = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
    for first, bucket, owner in features(texts, scores.size, pairs=pairs):
        last = first + int(owner.max(initial=-1)) + 1
        # as float64 every partial sum is a whole number below 2^53, so it is exact
        found[first:last] = np.bincount(owner, scores[bucket].astype(np.float64)) / FIXED_POINT if owner.size else 0.0
        number[first:last] = np.bincount(owner) if owner.size else 0
    return found, number


def sketches(texts: Sequence[str], weights: Ints, width: int) -> npt.NDArray[np.float32]:
    """For each text a vector of length 1 [n, width] (zeros for one without words): texts with the same telling words are alike.

    Each distinct feature adds its weight (`weights` [buckets]: of `fixed`, such as its rarity) to one of `width` places, with
    a sign, so that a product of two vectors is about that of the bags (a count sketch, Charikar et al. 2002).
    """
    found = np.zeros((len(texts), width), np.float32)
    for first, bucket, owner in features(texts, weights.size):
        distinct = np.unique(owner * weights.size + bucket)
        owner, bucket = np.divmod(distinct, weights.size)
        key = mix(bucket.astype(np.uint64))
        place = owner * width + (key >> np.uint64(1)).astype(np.int64) % width
        signed = np.where(key & np.uint64(1), weights[bucket], -weights[bucket]).astype(np.float64)
        rows = int(owner.max(initial=-1)) + 1
        vectors = np.bincount(place, signed, minlength=rows * width).reshape(rows, width)
        length = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
        found[first : first + rows] = vectors / np.where(length > 0, length, 1.0)
    return found


def _words(texts: Sequence[str]) -> tuple[U64, Ints]:
    """The hash of each word of the texts, in order, and the place of its text."""
    lowered = [text.lower() for text in texts]
    codes = codes_of(" ".join(lowered) + " ")
    kind = _kinds(codes)
    begins = np.flatnonzero(np.concatenate(([True], (kind[1:] != kind[:-1]) | (kind[1:] == _IDEOGRAPH))))
    ends = np.append(begins[1:], codes.size)
    inside = kind[begins] != _SPACE
    starts, ends = begins[inside], ends[inside]
    text_ends = np.cumsum([len(text) + 1 for text in lowered])
    return span_hashes(codes, starts, ends), np.searchsorted(text_ends, starts, side="right").astype(np.int64)


def _kinds(codes: Codes) -> npt.NDArray[np.uint8]:
    table = _kind_table(1 << 7 if codes.dtype == np.uint8 else 1 << 16)
    return table[np.minimum(codes, table.size - 1)]


@cache
def _kind_table(size: int) -> npt.NDArray[np.uint8]:
    """The kind of each character below `size`; the last stands for those beyond: emoji and the rarest ideographs, each a word."""
    found = np.full(size, _SIGN, np.uint8)
    for code in range(size):
        category = unicodedata.category(chr(code))
        if category[0] in "ZC":
            found[code] = _SPACE
        elif category[0] in "LNM" or code == 0x5F:
            found[code] = _WORD
    if size > 1 << 7:
        for begin, end in _IDEOGRAPHS:
            found[begin : end + 1] = _IDEOGRAPH
        found[size - 1] = _IDEOGRAPH
    return found
