"""Who holds which KV block: reference counts, prefix sharing by hash chain, eviction of the least recently used.

Promise: free + cached + held == total, after any sequence of operations. A *held* block has readers (its reference count);
a *cached* block has none, but its content is known by its hash and can be held again; a *free* block holds nothing.
Price: one 16-byte BLAKE2 per full block of tokens. After: vLLM's paged KV (arXiv 2309.06180) with hash-chained prefixes.
A block's hash covers every token before it, so equal hashes mean equal KV; the chain's root covers whatever else the KV
depends on (model, KV type, tenant).
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

__all__ = ["BlockPool", "block_hash", "root_hash"]


def root_hash(*parts: str) -> bytes:
    """Where a chain begins: all that the KV depends on besides the tokens."""
    return blake2b("\0".join(parts).encode(), digest_size=16).digest()


def block_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The hash of a full block of `tokens` that follows the block (or root) `parent`."""
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()


class BlockPool:
    """`total` blocks, named 0 … total-1."""

    def __init__(self, total: int) -> None:
        assert total > 0, total
        self.total = total
        self._free = list(range(total - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._num_readers = [0] * total
        self._hash_of: dict[int, bytes] = {}  # blocks whose content is known, held or cached
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks without readers whose content may be wanted again."""
        return len(self._cached)

    @property
    def num_held(self) -> int:
        """Blocks with readers."""
        return self.total - len(self._free) - len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can give."""
        return len(self._free) + len(self._cached)

    def allocate(self) -> int:
        """A block with one reader; evicts the least recently used cached block when none is free."""
        assert self.num_available, "allocate: every block has readers"
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            del self._block_of[self._hash_of.pop(block)]
        self._num_readers[block] = 1
        return block

    def hold(self, block: int) -> None:
        """One more reader of a held or cached block."""
        assert self._num_readers[block] or block in self._cached, f"hold: block {block} is free"
        self._cached.pop(block, None)
        self._num_readers[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One reader less of each; give a sequence's blocks last first, so that the start of a prefix is evicted last."""
        for block in blocks:
            assert self._num_readers[block], f"release: block {block} has no reader"
            self._num_readers[block] -= 1
            if self._num_readers[block]:
                continue
            if block in self._hash_of:
                self._cached[block] = None
            else:
                self._free.append(block)

    def register(self, block: int, digest: bytes) -> None:
        """Make a held block's content findable. Where another block has the same content already, that one stays the known one."""
        assert self._num_readers[block], f"register: block {block} has no reader"
        if digest not in self._block_of and block not in self._hash_of:
            self._block_of[digest] = block
            self._hash_of[block] = digest

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest known prefix of a chain; the caller holds them before anything else is allocated."""
        found = []
        for digest in hashes:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def find_tail(self, hashes: Sequence[bytes], num_behind: Callable[[int], int]) -> list[int]:
        """As `find`, where a prefix of m blocks is of use without its first `num_behind(m)` ones: 0 stands for each of those."""
        end = len(hashes)
        while end:
            first = num_behind(end)
            tail = self.find(hashes[first:end])
            if len(tail) == end - first:
                return [0] * first + tail
            end = first + len(tail)  # every longer prefix needs the block that is missing here
        return []

    def num_readers(self, block: int) -> int:
        """How many sequences read a block."""
        return self._num_readers[block]

    def check(self) -> None:
        """Assert the conservation law and that no block is in two places."""
        held = {block for block, count in enumerate(self._num_readers) if count}
        free, cached = set(self._free), set(self._cached)
        assert len(free) == len(self._free), "a block is free twice"
        assert not (held & free) | (held & cached) | (free & cached), "a block is in two places"
        assert len(held) + len(free) + len(cached) == self.total, "blocks were lost"
        assert cached <= set(self._hash_of), "a cached block has no hash"
        assert not free & set(self._hash_of), "a free block has a hash"
        assert {digest: block for block, digest in self._hash_of.items()} == self._block_of
