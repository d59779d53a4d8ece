"""KV blocks as data that travels between engines.

Promise: `KvBlocks` says what its bytes are (the kind of KV, the chain hashes), so that a destination can tell which of them it can use;
pickled with protocol 5, as Ray does, the bytes go out of band and are not copied again. Price: the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["NOTHING", "SLICE_BYTES", "KvBlocks", "slices"]

SLICE_BYTES = 8 << 20
"""What one call should carry: copying it holds an engine up for a few milliseconds, less than a step, and large enough for any network."""


@dataclass(frozen=True, slots=True, eq=False)
class KvBlocks:
    """Consecutive full blocks of one chain; none, of no kind, where there was nothing to give."""

    kv_kind: str
    """What computed them and in which layout: another kind cannot read them."""
    block_bytes: int
    parent: bytes
    """Hash of the block before the first; empty for the first block of a chain."""
    hashes: tuple[bytes, ...]
    data: NDArray[np.uint8]
    """[len(hashes), block_bytes], in one piece."""

    def __post_init__(self) -> None:
        shape = (len(self.hashes), self.block_bytes)
        if self.data.shape != shape or self.data.dtype != np.uint8 or not self.data.flags.c_contiguous:
            raise ValueError(f"data: {self.data.dtype} {self.data.shape} is not uint8 {shape} in one piece; give a row for each hash")

    @property
    def num_bytes(self) -> int:
        """What travels, but for the hashes."""
        return self.data.nbytes


NOTHING = KvBlocks("", 0, b"", (), np.empty((0, 0), np.uint8))
"""No blocks."""


def slices(first: int, last: int, block_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges that cover [first, last) in order, each of at most `SLICE_BYTES` (but never of less than a block).

    >>> list(slices(3, 10, SLICE_BYTES // 3))
    [(3, 6), (6, 9), (9, 10)]
    """
    each = max(1, SLICE_BYTES // max(1, block_bytes))
    for start in range(first, last, each):
        yield start, min(last, start + each)
