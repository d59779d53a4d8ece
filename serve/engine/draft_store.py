"""What earlier answers tell about the next one: counted n-grams, shared between a tenant's requests, in bounded memory.

Promise: never more than `capacity` n-grams (contexts of 1 … `LONGEST` tokens with one follower); those that were not met again for
long go first; what happened often long ago weighs less than what happens now. Price: about 2 µs a token learnt, some 150 bytes an n-gram.
One store per tenant: drafts would otherwise show, in their timing, what other tenants' answers contain.
"""

from __future__ import annotations

from collections.abc import Iterable

from serve.engine.draft_odds import Odds

__all__ = ["LONGEST", "SharedNgrams"]

LONGEST = 4
"""Longest context kept: longer ones hardly ever recur between requests."""
_MOST = 255
"""A context that was met this often has its counts halved, which also bounds its followers."""


class Entry:
    """What followed a context: the most frequent token (the latest of equals), how often, of how many, and the counts of all if several."""

    __slots__ = ("best", "count", "followers", "total")

    def __init__(self, token: int) -> None:
        self.best = token
        self.count = self.total = 1
        self.followers: dict[int, int] | None = None

    @property
    def size(self) -> int:
        """n-grams: different followers."""
        return 1 if self.followers is None else len(self.followers)

    def add(self, token: int) -> None:
        """Count one more follower."""
        if self.total >= _MOST:
            self._halve()
        self.total += 1
        if self.followers is None:
            if token == self.best:
                self.count += 1
                return
            self.followers = {self.best: self.count}
        count = self.followers[token] = self.followers.get(token, 0) + 1
        if count >= self.count:
            self.best, self.count = token, count

    def _halve(self) -> None:
        halves = {token: count >> 1 for token, count in (self.followers or {self.best: self.count}).items() if count > 1}
        self.followers = halves or {self.best: 1}
        self.best = self.best if self.best in self.followers else next(iter(self.followers))
        self.count, self.total = self.followers[self.best], sum(self.followers.values())


class SharedNgrams:
    """n-grams of finished answers, and how far guesses from them and from the requests' own text can be trusted.

    Two generations make the memory bounded: new and met-again contexts live in the young one; when it holds half of the
    capacity, it becomes the old one and the former old one is dropped.

    >>> store = SharedNgrams(capacity=1000)
    >>> store.learn([5, 6, 7, 5, 6, 8, 5, 6, 8])
    >>> entry = store.find((5, 6))
    >>> entry.best, entry.count, entry.total
    (8, 2, 3)
    """

    def __init__(self, capacity: int = 200_000) -> None:
        if capacity < 2:
            raise ValueError(f"capacity: {capacity} n-grams are too few; use at least 2")
        self.capacity = capacity
        self._half = (capacity - 1) // 2  # a generation may outgrow it by one n-gram before it ages
        self.odds = Odds()
        self._young: dict[tuple[int, ...], Entry] = {}
        self._old: dict[tuple[int, ...], Entry] = {}
        self._num_young = self._num_old = 0

    def __len__(self) -> int:
        """n-grams held."""
        return self._num_young + self._num_old

    def learn(self, tokens: Iterable[int]) -> None:
        """Count the n-grams of a finished answer."""
        text = tuple(tokens)
        for end in range(1, len(text)):
            token, young = text[end], self._young
            for start in range(max(0, end - LONGEST), end):
                context = text[start:end]
                entry = young.get(context)
                if entry is None:
                    self._enter(context, token)
                    young = self._young
                elif entry.best == token and entry.followers is None and entry.total < _MOST:  # the usual case, at half the price
                    entry.count = entry.total = entry.total + 1
                else:
                    self._grow(entry, token)
                    young = self._young

    def find(self, context: tuple[int, ...]) -> Entry | None:
        """What followed a context; None if it is unknown."""
        return self._young.get(context) or self._old.get(context)

    def _grow(self, entry: Entry, token: int) -> None:
        before = entry.size
        entry.add(token)
        self._num_young += entry.size - before
        if self._num_young > self._half:
            self._age()

    def _enter(self, context: tuple[int, ...], token: int) -> None:
        """Into the young generation: anew, or from the old one with what is known of it."""
        entry, size = self._old.pop(context, None), 1
        if entry is None:
            entry = Entry(token)
        else:
            self._num_old -= entry.size
            if entry.size < self._half:
                entry.add(token)
                size = entry.size
            else:
                entry = Entry(token)
        if self._num_young + size > self._half:
            self._age()
        self._young[context] = entry
        self._num_young += size

    def _age(self) -> None:
        self._old, self._num_old = self._young, self._num_young
        self._young, self._num_young = {}, 0
