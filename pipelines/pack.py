"""Documents of any length into sequences of one length: best-fit packing within order buckets.

Promise: every token lands in exactly one place, no sequence is longer than the capacity, a piece is never cut but where a
document is longer than a whole sequence, and sequences follow the order of the documents by buckets, so that an order given
to the documents (a seed's, a curriculum's) survives packing to within `bucket_sequences`. Price: linear in the pieces; the
best fit is one shift and one lowest set bit of an integer whose bits are the remaining capacities that are open.
After: best-fit decreasing (Johnson 1974) as "Fewer truncations improve language modeling" (arXiv 2404.10830) uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Packing", "Pieces", "best_fit", "fill", "mean_places", "pack", "split"]

Ints = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True)
class Pieces:
    """Documents cut to fit, in order; parallel arrays [p]."""

    document: Ints
    """Place of the document it is part of."""
    part: Ints
    """Which part of it, from 0."""
    length: Ints
    """Tokens."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Where each piece goes; parallel arrays [p]."""

    sequence: Ints
    segment: Ints
    """1, 2, … within the sequence, left to right; 0 is padding's."""
    offset: Ints
    """First token within the sequence."""
    num_sequences: int


def split(num_tokens: Ints, capacity: int) -> Pieces:
    """Each document as whole sequences and a rest.

    >>> split(np.array([3, 9]), 4).length.tolist()
    [3, 4, 4, 1]
    """
    parts = -(-num_tokens // capacity)
    document = np.repeat(np.arange(num_tokens.size), parts)
    part = np.arange(document.size) - np.repeat(np.cumsum(parts) - parts, parts)
    length = np.minimum(num_tokens[document] - part * capacity, capacity)
    return Pieces(document, part, length)


def pack(lengths: Ints, capacity: int, bucket_sequences: int) -> Packing:
    """Pack pieces of 1..capacity tokens; pieces of one bucket (about `bucket_sequences` sequences' worth) share sequences.

    >>> packed = pack(np.array([3, 2, 4, 1, 2]), 4, 100)
    >>> packed.sequence.tolist(), packed.segment.tolist(), packed.num_sequences
    ([1, 2, 0, 1, 2], [1, 1, 1, 2, 2], 3)
    """
    bucket = (np.cumsum(lengths) - lengths) // (capacity * bucket_sequences)
    bounds = np.searchsorted(bucket, np.arange(bucket[-1] + 2 if bucket.size else 1))
    sequence, offset = np.zeros(lengths.size, np.int64), np.zeros(lengths.size, np.int64)
    num_sequences = 0
    for begin, end in pairwise(bounds.tolist()):
        bins, offset[begin:end] = best_fit(lengths[begin:end].tolist(), capacity)
        sequence[begin:end] = np.asarray(bins, np.int64) + num_sequences
        num_sequences = max(num_sequences, int(sequence[begin:end].max(initial=-1)) + 1)
    return Packing(sequence, _segments(sequence, offset), offset, num_sequences)


def best_fit(lengths: Sequence[int], capacity: int) -> tuple[list[int], list[int]]:
    """Longest first, each piece into the fullest sequence that still has room for it: sequences and offsets."""
    sequence, offset = [0] * len(lengths), [0] * len(lengths)
    open_by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set while some sequence has room for exactly r more tokens
    used = 0
    for piece in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[piece]
        assert 0 < length <= capacity, f"a piece of {length} tokens does not fit {capacity}"
        if enough := rooms >> length:
            room = length + (enough & -enough).bit_length() - 1
            place = open_by_room[room].pop()
            rooms &= ~(0 if open_by_room[room] else 1 << room)
        else:
            room, place, used = capacity, used, used + 1
        sequence[piece], offset[piece] = place, capacity - room
        if left := room - length:
            open_by_room[left].append(place)
            rooms |= 1 << left
    return sequence, offset


def fill(tokens: Tokens, lengths: Ints, packed: Packing, capacity: int, pad: int) -> tuple[Tokens, npt.NDArray[np.uint16]]:
    """The pieces' tokens, one after the other [t], as sequences [n, capacity] and their segment ids (uint16) [n, capacity]."""
    sequences = np.full((packed.num_sequences, capacity), pad, tokens.dtype)
    segments = np.zeros((packed.num_sequences, capacity), np.uint16)
    places = zip(packed.sequence.tolist(), packed.offset.tolist(), packed.segment.tolist(), lengths.tolist(), strict=True)
    begin = 0
    for sequence, offset, segment, length in places:  # a loop over pieces, so that no array of indices is as long as the tokens
        sequences[sequence, offset : offset + length] = tokens[begin : begin + length]
        segments[sequence, offset : offset + length] = segment
        begin += length
    return sequences, segments


def mean_places(packed: Packing, lengths: Ints, places: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """For each sequence the mean place in an order of what it holds, each token counted [num_sequences].

    >>> mean_places(pack(np.array([3, 2, 1]), 4, 100), np.array([3, 2, 1]), np.array([0, 10, 20])).tolist()
    [5.0, 10.0]
    """
    weighted = np.bincount(packed.sequence, lengths * places.astype(np.float64), minlength=packed.num_sequences)
    return np.asarray(weighted / np.maximum(np.bincount(packed.sequence, lengths, minlength=packed.num_sequences), 1), np.float64)


def _segments(sequence: Ints, offset: Ints) -> Ints:
    """Rank of each piece among those of its sequence, by offset, from 1."""
    order = np.lexsort((offset, sequence))
    ordered = sequence[order]
    begins = np.flatnonzero(np.diff(ordered, prepend=-1))
    rank = np.arange(order.size) - np.repeat(begins, np.diff(begins, append=order.size))
    segment = np.empty(order.size, np.int64)
    segment[order] = rank + 1
    return segment
