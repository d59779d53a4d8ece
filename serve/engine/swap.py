"""Which preempted sequences have their KV in host memory, and the copies a step must make.

Promise: never more than `capacity` blocks in host memory; every copy that went out comes back in, or is dropped, exactly once. Decides
only: the runner moves the bytes (`Batch.copies_out`, `Batch.copies_in`). Price: none. After: vLLM's swapping (arXiv 2309.06180, 4.5).
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Series
from dataclasses import dataclass

__all__ = ["HostCopies", "HostCopy"]


@dataclass(frozen=True, slots=True)
class HostCopy:
    """The KV of a preempted sequence: its blocks `first` … `first + num_blocks - 1`, holding its tokens up to `computed`."""

    key: int
    first: int
    num_blocks: int
    computed: int


class HostCopies:
    """The copies that exist, and those to make with the next batch."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._live: dict[int, HostCopy] = {}
        self._num_blocks = 0
        self._num_made = 0
        self._out: list[tuple[int, list[int]]] = []
        self._in: list[tuple[int, list[int]]] = []

    @property
    def num_blocks(self) -> int:
        """Blocks in host memory, those that the next batch will copy included."""
        return self._num_blocks

    def make(self, blocks: Series[int], first: int, computed: int) -> HostCopy | None:
        """Copy blocks out with the next batch; None when there is nothing to copy or no room for it."""
        if not blocks or self._num_blocks + len(blocks) > self.capacity:
            return None
        copy = HostCopy(self._num_made, first, len(blocks), computed)
        self._num_made += 1
        self._num_blocks += len(blocks)
        self._live[copy.key] = copy
        self._out.append((copy.key, list(blocks)))
        return copy

    def use(self, copy: HostCopy, blocks: Series[int] = ()) -> None:
        """Copy the last len(blocks) blocks of a copy back in with the next batch; the copy is gone then. Without blocks: just drop it."""
        del self._live[copy.key]
        self._num_blocks -= copy.num_blocks
        self._in.append((copy.key, list(blocks)))

    def drop(self, keys: Iterable[int]) -> None:
        """A batch that should have copied these in failed: whatever is left of them goes with the next."""
        self._in += [(key, []) for key in keys]

    def take(self) -> tuple[list[tuple[int, list[int]]], list[tuple[int, list[int]]]]:
        """The copies out and in that the next batch makes; they are its from now on."""
        out, self._out = self._out, []
        back, self._in = self._in, []
        return out, back

    def check(self, owned: Series[HostCopy]) -> None:
        """Assert that the copies that exist are those that sequences own, and within the capacity."""
        assert {copy.key: copy for copy in owned} == self._live, "a host copy was lost, or is owned by nobody"
        assert self._num_blocks == sum(copy.num_blocks for copy in owned) <= max(self.capacity, 0)
