"""The block pool: blocks are conserved whatever happens, prefixes are found, the oldest content is evicted."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serve.engine.blocks import BlockPool, block_hash, root_hash

ROOT = root_hash("model")


def test_an_evicted_block_is_forgotten_and_the_least_recent_goes_first() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(), pool.allocate()
    one, two = block_hash(ROOT, [1]), block_hash(ROOT, [2])
    pool.register(first, one)
    pool.register(second, two)
    pool.release([first, second])
    assert (pool.num_free, pool.num_cached, pool.num_held) == (0, 2, 0)
    assert pool.allocate() == first
    assert pool.find([one]) == []
    assert pool.find([two]) == [second]


def test_a_cached_block_is_held_again() -> None:
    pool = BlockPool(2)
    block = pool.allocate()
    digest = block_hash(ROOT, [1, 2])
    pool.register(block, digest)
    pool.release([block])
    pool.hold(block)
    assert pool.num_readers(block) == 1
    assert pool.allocate() != block  # a held block is never evicted
    pool.check()


def test_equal_content_in_two_blocks_is_known_once() -> None:
    pool = BlockPool(2)
    a, b = pool.allocate(), pool.allocate()
    digest = block_hash(ROOT, [1])
    pool.register(a, digest)
    pool.register(b, digest)
    pool.release([a, b])
    assert (pool.num_free, pool.num_cached) == (1, 1)
    pool.check()


def test_behind_a_window_the_first_blocks_may_be_gone() -> None:
    pool, hashes = BlockPool(6), [block_hash(ROOT, [i]) for i in range(6)]
    blocks = [pool.allocate() for _ in hashes]
    for block, digest in zip(blocks, hashes, strict=True):
        pool.register(block, digest)
    pool.release([blocks[0], *reversed(blocks[1:])])
    pool.allocate()  # evicts the first

    def two_of_use(end: int) -> int:
        return max(0, end - 2)

    assert pool.find(hashes) == []
    assert pool.find_tail(hashes, two_of_use) == [0, 0, 0, 0, *blocks[4:]]
    assert pool.find_tail(hashes[:2], two_of_use) == [], "block 0 is of use there"
    pool.allocate()  # evicts the last
    assert pool.find_tail(hashes, two_of_use) == [0, 0, 0, *blocks[3:5]]
    assert pool.find_tail(hashes, lambda end: 0) == []


def test_a_hash_covers_everything_before_it() -> None:
    assert block_hash(block_hash(ROOT, [1]), [3]) != block_hash(block_hash(ROOT, [2]), [3])
    assert block_hash(root_hash("model", "tenant a"), [1]) != block_hash(root_hash("model", "tenant b"), [1])
    assert root_hash("a", "bc") != root_hash("ab", "c")


class Blocks(RuleBasedStateMachine):
    """Sequences that come, share, grow and go; a model of who reads what beside the pool."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(6)
        self.sequences: list[list[int]] = []
        self.hashes = [block_hash(ROOT, [i]) for i in range(4)]

    @rule(index=st.integers(0, 3))
    @precondition(lambda self: len(self.sequences) < 4)
    def begin(self, index: int) -> None:
        found = self.pool.find(self.hashes[index : index + 1])
        for block in found:
            self.pool.hold(block)
        self.sequences.append(found)

    @rule(data=st.data())
    @precondition(lambda self: self.sequences and self.pool.num_available)
    def grow(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.sequences), label="sequence").append(self.pool.allocate())

    @rule(data=st.data(), index=st.integers(0, 3))
    @precondition(lambda self: any(self.sequences))
    def register(self, data: st.DataObject, index: int) -> None:
        blocks = data.draw(st.sampled_from([s for s in self.sequences if s]), label="sequence")
        self.pool.register(data.draw(st.sampled_from(blocks), label="block"), self.hashes[index])

    @rule(data=st.data())
    @precondition(lambda self: self.sequences)
    def end(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.sequences) - 1), label="sequence")
        self.pool.release(reversed(self.sequences.pop(index)))

    @invariant()
    def conserved(self) -> None:
        self.pool.check()
        assert self.pool.num_free + self.pool.num_cached + self.pool.num_held == self.pool.total
        readers = Counter(block for blocks in self.sequences for block in blocks)
        assert {block: self.pool.num_readers(block) for block in readers} == readers
        assert self.pool.num_held == len(readers)


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
