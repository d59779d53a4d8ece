"""Embeddings in the making at a gateway, and for how long they would hold up one more.

Promise: replicas read texts in turns (serve/reading.py), so a request of T tokens waits for at most T tokens of each that is there
before it, however long that one is. What a token takes is measured; nothing is expected before it was, and who is alone waits for nobody.
Price: a pass over the requests there are, per request. Source: processor sharing (Kleinrock 1967).
"""

from __future__ import annotations

from dataclasses import dataclass

from serve.limits.first_token import moved

__all__ = ["Backlog", "Reading"]


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One request for embeddings. Times are of one clock, in seconds."""

    num_tokens: int
    ahead: int
    """Tokens of others that were to be read in the same time."""
    began_s: float


class Backlog:
    """Those of one gateway."""

    def __init__(self) -> None:
        self.token_s = 0.0
        """What a token takes, everyone's included."""
        self._readings: set[Reading] = set()

    def __len__(self) -> int:
        return len(self._readings)

    def delay_s(self, num_tokens: int) -> float:
        """How much longer a request of `num_tokens` takes than if it were alone.

        >>> backlog = Backlog()
        >>> backlog.read(backlog.add(1000, now_s=0.0), now_s=2.0)
        >>> long = backlog.add(5000, now_s=2.0)
        >>> backlog.delay_s(100), backlog.delay_s(50_000)
        (0.2, 10.0)
        """
        return self._ahead(num_tokens) * self.token_s

    def add(self, num_tokens: int, now_s: float) -> Reading:
        """One more."""
        reading = Reading(num_tokens, self._ahead(num_tokens), now_s)
        self._readings.add(reading)
        return reading

    def remove(self, reading: Reading) -> None:
        """It is over; may be said twice."""
        self._readings.discard(reading)

    def read(self, reading: Reading, now_s: float) -> None:
        """It is over, and was read to its end."""
        self.token_s = moved(self.token_s, (now_s - reading.began_s) / (reading.num_tokens + reading.ahead))
        self.remove(reading)

    def _ahead(self, num_tokens: int) -> int:
        return sum(min(reading.num_tokens, num_tokens) for reading in self._readings)
