"""Pins: what is under a ticket stays, until the ticket ends or somebody would lose what he has; blocks are conserved whatever happens."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serve.engine.blocks import BlockPool, block_hash, root_hash
from serve.engine.pins import PIN_S, Pins

HASHES = [block_hash(root_hash("model"), [i]) for i in range(5)]


def make_pins(*, tickets: dict[str, int], total: int = 6) -> tuple[BlockPool, Pins]:
    """A pool, and as many new blocks under each ticket; ticket number i was used at i seconds."""
    pool = BlockPool(total)
    pins = Pins(pool)
    for i, (ticket, num_blocks) in enumerate(tickets.items()):
        pins.use(ticket, float(i))
        for _ in range(num_blocks):
            pool.register(pins.allocate(ticket), HASHES[pool.num_held - 1])
    return pool, pins


def test_pinned_blocks_are_held_and_cached_when_released() -> None:
    pool, pins = make_pins(tickets={"a": 3})
    assert (pool.num_free, pool.num_cached, pool.num_held, pins.num_blocks) == (3, 0, 3, 3)
    pins.release("a")
    assert (pool.num_free, pool.num_cached, pool.num_held, len(pins)) == (3, 3, 0, 0)
    assert pool.find(HASHES) == [0, 1, 2]
    assert [pool.allocate() for _ in range(4)] == [3, 4, 5, 2], "the last of the chain is evicted first"


def test_a_block_under_two_tickets_has_two_readers() -> None:
    pool, pins = make_pins(tickets={"a": 1, "b": 1})
    for _ in range(2):  # twice is once
        pins.pin("b", 0)
    assert pins.readers() == Counter({0: 2, 1: 1})
    assert (pool.num_readers(0), pins.num_blocks) == (2, 2)
    pins.release("a")
    assert pool.num_held == 2


def test_a_ticket_that_nobody_knows_is_no_error() -> None:
    pool, pins = make_pins(tickets={"a": 1})
    pins.release("b")
    pins.release("a")
    pins.release("a")
    assert pool.num_held == 0


def test_a_ticket_ends_when_nobody_uses_it() -> None:
    pool, pins = make_pins(tickets={"a": 1, "b": 1})
    pins.expire(PIN_S)
    assert pool.num_held == 2
    pins.use("a", 50.0)
    pins.expire(PIN_S + 2.0)
    assert (pool.num_held, len(pins)) == (1, 1), "b was used last at 1 s"
    pins.expire(2 * PIN_S)
    assert (pool.num_held, len(pins)) == (0, 0)


def test_the_longest_unused_ticket_gives_way_first_and_its_last_block_first() -> None:
    pool, pins = make_pins(tickets={"a": 3, "b": 2})
    pins.give_way(2)
    assert pool.num_available == 2
    assert pins.readers() == Counter([0, 1, 3, 4])
    pins.use("a", 9.0)
    pins.give_way(4)
    assert pins.readers() == Counter([0, 1])
    pins.give_way(99)
    assert (pool.num_held, len(pins)) == (0, 0)


def test_giving_way_takes_nothing_that_others_read() -> None:
    pool, pins = make_pins(tickets={"a": 3})
    pool.hold(2)
    pins.give_way(4)
    assert pool.num_readers(2) == 1
    assert pins.readers() == Counter([0]), "unpinning block 2 gave nothing, so another had to go"


def test_only_a_ticket_in_use_pins() -> None:
    pool, pins = make_pins(tickets={"a": 1})
    with pytest.raises(KeyError):
        pins.pin("b", 0)
    pool.check()


class PinnedBlocks(RuleBasedStateMachine):
    """Imports come under tickets, sequences find them, grow, and make pins give way; a model of who reads what beside the pool."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(7)
        self.pins = Pins(self.pool)
        self.sequences: list[list[int]] = []
        self.under: dict[str, list[int]] = {}  # the longest unused ticket first

    def readers(self) -> Counter[int]:
        return Counter(block for blocks in [*self.sequences, *self.under.values()] for block in blocks)

    @rule(ticket=st.sampled_from("abc"), indices=st.lists(st.integers(0, 4), max_size=3))
    def bring(self, ticket: str, indices: list[int]) -> None:
        self.pins.use(ticket, 0.0)
        mine = self.under[ticket] = self.under.pop(ticket, [])
        for digest in (HASHES[i] for i in indices):
            found = self.pool.find([digest])
            if found:
                self.pins.pin(ticket, found[0])
            elif self.pool.num_available:
                found = [self.pins.allocate(ticket)]
                self.pool.register(found[0], digest)
            mine += [block for block in found if block not in mine]

    @rule(ticket=st.sampled_from("abc"))
    def release(self, ticket: str) -> None:
        self.pins.release(ticket)
        self.under.pop(ticket, None)

    @rule(index=st.integers(0, 4))
    @precondition(lambda self: len(self.sequences) < 4)
    def begin(self, index: int) -> None:
        found = self.pool.find(HASHES[index : index + 1])
        for block in found:
            self.pool.hold(block)
        self.sequences.append(found)

    @rule(data=st.data(), wanted=st.integers(1, 3))
    @precondition(lambda self: self.sequences)
    def grow(self, data: st.DataObject, wanted: int) -> None:
        self.pins.give_way(wanted)
        while self.under and 7 - len(self.readers()) < wanted:
            oldest = next(iter(self.under))
            if self.under[oldest]:
                self.under[oldest].pop()
            else:
                del self.under[oldest]
        assert self.pool.num_available >= wanted or not len(self.pins)
        mine = data.draw(st.sampled_from(self.sequences), label="sequence")
        mine.extend(self.pool.allocate() for _ in range(min(wanted, self.pool.num_available)))

    @rule(data=st.data())
    @precondition(lambda self: self.sequences)
    def end(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.sequences) - 1), label="sequence")
        self.pool.release(reversed(self.sequences.pop(index)))

    @invariant()
    def conserved(self) -> None:
        self.pool.check()
        readers = self.readers()
        assert self.pool.num_free + self.pool.num_cached + self.pool.num_held == self.pool.total
        assert {block: self.pool.num_readers(block) for block in readers} == readers
        assert self.pool.num_held == len(readers)
        assert self.pins.readers() == Counter(block for blocks in self.under.values() for block in blocks)


TestPinnedBlocks = PinnedBlocks.TestCase
TestPinnedBlocks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
