"""Near-duplicate candidates: shingles, MinHash signatures, bands, and the exact similarity that decides.

A document is the set of its word n-grams (shingles), each a 64-bit hash. MinHash keeps the least value of each of
bands x rows hash functions over the set; two sets of Jaccard similarity s agree in one value with probability s, in a whole
band of r rows with s^r, in any of b bands with 1 - (1 - s^r)^b. FineWeb's 14 bands of 8 rows cut at about (1/14)^(1/8) = 0.72.
Promise: functions of the text and the seed alone. Price: about 25 ns a character on one core, most of it in the 112 hash
functions. After: Broder 1997; FineWeb (arXiv 2406.17557).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from pipelines.curate.spans import U64, codes_of, groups, mix, runs, span_hashes

__all__ = ["band_values", "jaccard", "shingles"]

_BLOCK = 1024  # shingles at a time: 112 x 1024 x 4 bytes stay in the second-level cache
_SPACE, _NEWLINE = 0x20, 0x0A


def shingles(texts: Sequence[str], ngram: int) -> list[U64]:
    """For each canonical text (words parted by single spaces) the hashes of its word n-grams in order, repeats included.

    A text of fewer than `ngram` words but at least one has a single shingle, all of it; one without words has none.

    >>> [len(s) for s in shingles(["a b c d e f", "a b", ""], 5)]
    [2, 1, 0]
    """
    return [grams for group in groups(texts) for grams in _shingles_of_group(group, ngram)]


def band_values(grams: U64, *, bands: int, rows: int, seed: int) -> U64:
    """The `bands` values of one document [bands]; documents that share a value in the same band are candidates.

    The values of a document without shingles mean nothing and are never to be compared.
    """
    multiplier, offset = _functions(bands * rows, seed)
    least = np.full(bands * rows, 0xFFFFFFFF, np.uint32)
    short = (grams >> np.uint64(32)).astype(np.uint32)
    for begin in range(0, short.size, _BLOCK):
        values = multiplier[:, None] * short[None, begin : begin + _BLOCK]
        values += offset[:, None]
        np.minimum(least, values.min(axis=1), out=least)
    return _weighted(least.reshape(bands, rows).astype(np.uint64))


def jaccard(left: U64, right: U64) -> float:
    """Similarity of two sets given as sorted arrays without repeats (np.unique of shingles).

    >>> jaccard(np.array([1, 2, 3], np.uint64), np.array([2, 3, 4], np.uint64))
    0.5
    """
    if not left.size or not right.size:
        return 0.0
    common = np.intersect1d(left, right, assume_unique=True).size
    return float(common / (left.size + right.size - common))


def _shingles_of_group(texts: Sequence[str], ngram: int) -> list[U64]:
    codes = codes_of("\n".join(texts) + "\n")
    starts, ends = runs((codes != _SPACE) & (codes != _NEWLINE))
    words = span_hashes(codes, starts, ends)
    upto = np.searchsorted(starts, np.flatnonzero(codes == _NEWLINE)).tolist()  # words up to the end of each text
    padded = np.concatenate((words, np.zeros(ngram, np.uint64)))
    grams = _weighted(np.lib.stride_tricks.sliding_window_view(padded, ngram))
    result: list[U64] = []
    for begin, end in zip([0, *upto], upto, strict=False):
        if 0 < end - begin < ngram:
            alone = np.concatenate((words[begin:end], np.zeros(ngram - (end - begin), np.uint64)))
            result.append(_weighted(alone[None, :]))
        else:
            result.append(grams[begin : max(end - ngram + 1, begin)])
    return result


def _weighted(values: npt.NDArray[np.uint64]) -> U64:
    """[n, k] -> [n]: the hash of each row, the order of its values included."""
    total = np.zeros(values.shape[0], np.uint64)
    for place, weight in enumerate(_odd_numbers(values.shape[1])):
        total += values[:, place] * weight
    return mix(total)


@cache
def _odd_numbers(count: int) -> U64:
    return mix(np.arange(1, count + 1, dtype=np.uint64)) | np.uint64(1)


@cache
def _functions(count: int, seed: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """`count` odd multipliers and offsets modulo 2^32: each pair permutes the 32-bit integers."""
    drawn = np.random.Generator(np.random.Philox(seed)).integers(0, 1 << 32, (2, count), dtype=np.uint32)
    return drawn[0] | np.uint32(1), drawn[1]
