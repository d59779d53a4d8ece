"""KV blocks kept under tickets for requests that are on their way here from another engine.

Promise: a pinned block is held, so nobody evicts it, until its ticket is released, or `PIN_S` have passed since the ticket was last used,
or a sequence would otherwise lose its own blocks or could never start: then pins give way, the oldest ticket first and its last block
first, for the first blocks of a chain are of use without the last. So a request that never comes costs nobody anything for long.
Price: one dictionary entry per block and ticket.
"""

from __future__ import annotations

from collections import Counter

from serve.engine.blocks import BlockPool

__all__ = ["PIN_S", "Pins"]

PIN_S = 60.0
"""How long a ticket that is not used again keeps its blocks: longer than the stages of one move are apart."""


class Pins:
    """The tickets, the longest unused first. A block may be under several; it has a reader for each."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._blocks_of: dict[str, dict[int, None]] = {}  # in the order in which they were pinned
        self._used_s: dict[str, float] = {}

    def __len__(self) -> int:
        """Tickets."""
        return len(self._blocks_of)

    @property
    def num_blocks(self) -> int:
        """Blocks under at least one ticket."""
        return len(self.readers())

    def use(self, ticket: str, now_s: float) -> None:
        """A ticket begins, or is still needed."""
        self._blocks_of[ticket] = self._blocks_of.pop(ticket, {})
        self._used_s[ticket] = now_s

    def pin(self, ticket: str, block: int) -> None:
        """Keep a held or cached block under a ticket in use; once, however often it is asked."""
        if block not in self._blocks_of[ticket]:
            self._pool.hold(block)
            self._blocks_of[ticket][block] = None

    def allocate(self, ticket: str) -> int:
        """A new block of the pool, under a ticket in use."""
        block = self._pool.allocate()
        self._blocks_of[ticket][block] = None
        return block

    def release(self, ticket: str) -> None:
        """The blocks of a ticket are anybody's again; nothing happens if there is no such ticket (any more)."""
        blocks = self._blocks_of.pop(ticket, {})
        self._used_s.pop(ticket, None)
        self._pool.release(reversed(blocks))

    def expire(self, now_s: float) -> None:
        """Release the tickets that were not used for `PIN_S`."""
        for ticket in [name for name, used_s in self._used_s.items() if now_s - used_s > PIN_S]:
            self.release(ticket)

    def give_way(self, num_blocks: int) -> None:
        """Unpin until the pool has `num_blocks` to give, or nothing is pinned."""
        while self._pool.num_available < num_blocks and self._blocks_of:
            oldest = next(iter(self._blocks_of))
            if self._blocks_of[oldest]:
                self._pool.release([self._blocks_of[oldest].popitem()[0]])
            else:
                self.release(oldest)

    def readers(self) -> Counter[int]:
        """How many tickets each pinned block is under."""
        return Counter(block for blocks in self._blocks_of.values() for block in blocks)
