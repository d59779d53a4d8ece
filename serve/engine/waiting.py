"""Who waits to run, first in line first, however many there are and however often their order changes.

Promise: the order is that of priority; then those that have started before, by their first start; then those that have emitted elsewhere,
for somebody reads them already; then the policy's key; then arrival.
Coming, leaving and finding the first cost the logarithm of the number that wait. Price: an entry per group, and a stale one or so.
How: sequences that share a policy's key (a client's, under fair shares) are a group, in order of arrival. A group's key only grows
while it waits, so its entry in the heap is at worst too early, and is put right when it comes to the top; a key that fell is told
(`move`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import chain
from math import inf

from serve.engine.policy import Policy
from serve.engine.sequence import Sequence

__all__ = ["WaitingLine", "rank"]

Place = tuple[int, float, int]
"""Priority (the highest is the least), key and arrival of a group's first: no two groups have the same."""
_SPARE = 64
"""Stale entries that a heap may have, besides as many as there are groups."""


@dataclass(slots=True)
class _Group:
    """Sequences of one priority that share a key, by arrival."""

    members: OrderedDict[int, Sequence] = field(default_factory=OrderedDict)
    place: Place = (0, 0.0, 0)
    """Where the heap has it; its true place is there or later."""

    @property
    def first(self) -> Sequence:
        return next(iter(self.members.values()))


class WaitingLine:
    """The sequences that wait, which come in order of arrival."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._started: list[Sequence] = []  # few: those that were in the batch together
        self._groups: dict[Hashable, _Group] = {}
        self._heap: list[Place] = []
        self._at: dict[Place, _Group] = {}  # an entry of the heap that is not here is stale
        self._num_new = 0

    def __len__(self) -> int:
        return len(self._started) + self._num_new

    def __iter__(self) -> Iterator[Sequence]:
        """In order; sorts them all."""
        new = (sequence for group in self._groups.values() for sequence in group.members.values())
        return iter(sorted(chain(self._started, new), key=self._order))

    def add(self, sequence: Sequence) -> None:
        """One more waits: the latest to arrive, or one that has started before."""
        if sequence.started is not None:
            insort(self._started, sequence, key=rank)
            return
        group = self._groups.setdefault(self._name(sequence), _Group())
        group.members[sequence.arrival] = sequence
        self._num_new += 1
        if len(group.members) == 1:
            self._put(group)

    def remove(self, sequence: Sequence) -> None:
        """One that waits does so no more."""
        if sequence.started is not None:
            del self._started[bisect_left(self._started, rank(sequence), key=rank)]
            return
        name = self._name(sequence)
        group = self._groups[name]
        del group.members[sequence.arrival]
        self._num_new -= 1
        if not group.members:
            del self._groups[name], self._at[group.place]

    def move(self, sequence: Sequence) -> None:
        """A waiting sequence's key has changed, maybe fallen."""
        group = self._groups[self._name(sequence)]
        del self._at[group.place]
        self._put(group)

    def first(self) -> Sequence:
        """Who is next; there must be someone."""
        while self._heap:
            group = self._at.get(self._heap[0])
            if group is None:
                heappop(self._heap)
            elif self._place(group) == group.place:
                break
            else:
                del self._at[heappop(self._heap)]
                self._put(group)
        new = self._at[self._heap[0]].first if self._heap else None
        if new is None or (self._started and self._started[0].request.priority >= new.request.priority):
            return self._started[0]
        return new

    def check(self) -> None:
        """Assert that what the heap says is no later than it should be, and that it says so of every group."""
        assert self._num_new == sum(len(group.members) for group in self._groups.values())
        assert self._started == sorted(self._started, key=rank), "out of line"
        assert len(self._at) == len(self._groups), "a group is not in the heap, or twice"
        for group in self._groups.values():
            assert self._at[group.place] is group
            assert group.place <= self._place(group), "a key fell, and nobody told"
        assert set(self._at) <= set(self._heap)

    def _put(self, group: _Group) -> None:
        group.place = self._place(group)
        self._at[group.place] = group
        heappush(self._heap, group.place)
        if len(self._heap) > 2 * len(self._groups) + _SPARE:
            self._heap = list(self._at)
            heapify(self._heap)

    def _place(self, group: _Group) -> Place:
        first = group.first
        return -first.request.priority, self._key(first), first.arrival

    def _key(self, sequence: Sequence) -> float:
        """The policy is asked about those only that nobody has heard of yet."""
        return -inf if sequence.request.emitted else self._policy.key(sequence)

    def _name(self, sequence: Sequence) -> Hashable:
        return sequence.request.priority, bool(sequence.request.emitted), self._policy.group(sequence)

    def _order(self, sequence: Sequence) -> tuple[int, int, float, int]:
        """Where in the whole line a sequence is."""
        if sequence.started is not None:
            return -sequence.request.priority, 0, 0.0, sequence.started
        return -sequence.request.priority, 1, self._key(sequence), sequence.arrival


def rank(sequence: Sequence) -> tuple[int, int]:
    """Of those that have started: by priority, then by first start."""
    assert sequence.started is not None
    return -sequence.request.priority, sequence.started
