"""Whose turn it is among clients: a virtual token counter for each.

Promise: between any two clients that both have requests waiting, the weighted tokens served differ by at most twice what one request
or one full batch weighs, however much either asks for; a client that was away does not collect a claim. Price: one number per
client, forgotten when it says no more than the rule does; the logarithm of the clients that wait per event. After: VTC (arXiv
2401.00588), algorithm 2 and theorem 4.4.
"""

from __future__ import annotations

from collections import Counter
from heapq import heapify, heappop, heappush, heapreplace

__all__ = ["VirtualTokenCounter"]

INPUT_WEIGHT, OUTPUT_WEIGHT = 1.0, 2.0
"""What a prompt token and an emitted token count: the paper's weights, in the ratio of common price lists."""
MAX_IDLE = 10_000
"""Clients without waiting requests that are remembered before those that the rule would lift anyway are forgotten."""
_SPARE = 64
"""Entries of clients that wait no more that the heap may have, besides as many as wait."""


class VirtualTokenCounter:
    """Weighted tokens served to each client.

    >>> counter = VirtualTokenCounter()
    >>> counter.arrive("a"); counter.serve("a", inputs=100)
    >>> counter.arrive("b"); counter.of("b")  # a is waiting with 100: b begins level with it, not ahead
    100.0
    """

    def __init__(self, max_idle: int = MAX_IDLE) -> None:
        self._served: dict[str, float] = {}
        self._waiting: Counter[str] = Counter()
        self._heap: list[tuple[float, str]] = []  # of each client that waits: what it was served at some time, since when that only grew
        self._last = ""  # the last client that waited: where another one begins when nobody waits
        self._max_idle = self._room = max_idle

    def __len__(self) -> int:
        """Clients that have a counter."""
        return len(self._served)

    def of(self, client: str) -> float:
        """What was served to a client, as far as it counts; the smallest goes first."""
        served = self._served.get(client)
        return self._least() if served is None else served

    def arrive(self, client: str) -> None:
        """One more request of a client waits; one that had none is lifted to the least of those that have."""
        if client in self._waiting:
            self._waiting[client] += 1
            return
        least = self._least()
        self._served[client] = max(self._served.get(client, least), least)
        self._waiting[client] = 1
        self._push(client)

    def leave(self, client: str) -> None:
        """One of a client's requests waits no more."""
        self._waiting[client] -= 1
        assert self._waiting[client] >= 0, f"leave: {client!r} has nothing waiting"
        if not self._waiting[client]:
            del self._waiting[client]
            if not self._waiting:
                self._last = client
            self._prune()

    def serve(self, client: str, *, inputs: int = 0, outputs: int = 0) -> None:
        """A client got tokens."""
        self._served[client] = self.of(client) + INPUT_WEIGHT * inputs + OUTPUT_WEIGHT * outputs

    def _least(self) -> float:
        """What the least served of those that wait was served; the last one that did, when nobody does."""
        heap = self._heap
        while heap:
            served, client = heap[0]
            if client not in self._waiting:
                heappop(heap)
            elif served != self._served[client]:
                heapreplace(heap, (self._served[client], client))
            else:
                return served
        return self._served.get(self._last, 0.0)

    def _push(self, client: str) -> None:
        heappush(self._heap, (self._served[client], client))
        if len(self._heap) > 2 * len(self._waiting) + _SPARE:
            self._heap = [(self._served[waiting], waiting) for waiting in self._waiting]
            heapify(self._heap)

    def _prune(self) -> None:
        if len(self._served) - len(self._waiting) <= self._room:
            return
        least, kept = self._least(), {*self._waiting, self._last}
        self._served = {client: served for client, served in self._served.items() if client in kept or served > least}
        self._room = len(self._served) - len(self._waiting) + self._max_idle  # those that stay are not looked at each time
