"""Whose turn it is among clients: a virtual token counter for each.

Promise: between any two clients that both have requests waiting, the weighted tokens served differ by at most twice what one request
or one full batch weighs, however much either asks for; a client that was away does not collect a claim. Price: one number per
client, forgotten when it says no more than the rule does. After: VTC (arXiv 2401.00588), algorithm 2 and theorem 4.4.
"""

from __future__ import annotations

from collections import Counter

__all__ = ["VirtualTokenCounter"]

INPUT_WEIGHT, OUTPUT_WEIGHT = 1.0, 2.0
"""What a prompt token and an emitted token count: the paper's weights, in the ratio of common price lists."""
MAX_IDLE = 10_000
"""Clients without waiting requests that are remembered before those that the rule would lift anyway are forgotten."""


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
        self._last = ""  # the last client that waited: where another one begins when nobody waits
        self._max_idle = max_idle

    def __len__(self) -> int:
        """Clients that have a counter."""
        return len(self._served)

    def of(self, client: str) -> float:
        """What was served to a client, as far as it counts; the smallest goes first."""
        served = self._served.get(client)
        return self._least() if served is None else served

    def arrive(self, client: str) -> None:
        """One more request of a client waits; one that had none is lifted to the least of those that have."""
        if not self._waiting[client]:
            least = self._least()
            self._served[client] = max(self._served.get(client, least), least)
        self._waiting[client] += 1

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
        return min((self._served[client] for client in self._waiting), default=self._served.get(self._last, 0.0))

    def _prune(self) -> None:
        if len(self._served) - len(self._waiting) <= self._max_idle:
            return
        least, kept = self._least(), {*self._waiting, self._last}
        self._served = {client: served for client, served in self._served.items() if client in kept or served > least}
