"""Requests in service, as amounts by when they came: so that one which is cut off knows how much patience it has left.

Promise: exact under the fluid's own rule: service is memoryless, so all of them shrink alike, whenever they came.
Price: one entry per moment of the last `timeout_s` seconds; those that came before are one, since their patience is over.
"""

from __future__ import annotations

__all__ = ["Part", "Served"]

TINY = 1e-100

Part = tuple[float, float, bool]
"""(when it came, requests, whether its client has sent it again)."""


class Served:
    """What one place, or many together, are working on.

    >>> served = Served()
    >>> served.add(0.0, 8.0, False)
    >>> served.shrink(0.5)
    >>> served.take(0.25).amount, served.amount
    (1.0, 3.0)
    """

    __slots__ = ("_old", "_old_again", "_parts", "_scale", "amount")

    def __init__(self) -> None:
        self.amount = 0.0
        self._scale = 1.0  # the amounts below are to be multiplied by it
        self._parts: dict[tuple[float, bool], float] = {}
        self._old = self._old_again = 0.0  # those past all patience: for the first time, and sent again

    def add(self, came_s: float, amount: float, again: bool) -> None:
        """These begin."""
        self.amount += amount
        self._parts[came_s, again] = self._parts.get((came_s, again), 0.0) + amount / self._scale

    def shrink(self, left: float) -> None:
        """The share `left` is still being served."""
        self.amount *= left
        self._scale *= left
        if self._scale < TINY:
            self._parts = {key: amount * self._scale for key, amount in self._parts.items()}
            self._old, self._old_again, self._scale = self._old * self._scale, self._old_again * self._scale, 1.0

    def forget(self, before_s: float) -> None:
        """Those that came before then are all alike."""
        parts = self._parts
        while parts and (first := next(iter(parts)))[0] < before_s:
            if first[1]:
                self._old_again += parts.pop(first)
            else:
                self._old += parts.pop(first)

    def take(self, share: float) -> Served:
        """This share of every part leaves."""
        gone = Served()
        for came_s, amount, again in self.parts():
            gone.add(came_s, share * amount, again)
        self.shrink(max(0.0, 1 - share))
        return gone

    def join(self, other: Served) -> None:
        """Those of `other`, too."""
        for part in other.parts():
            self.add(*part)

    def parts(self) -> list[Part]:
        """What it is made of; the oldest as if they had come long ago."""
        old = [(float("-inf"), amount * self._scale, again) for amount, again in ((self._old, False), (self._old_again, True)) if amount]
        return old + [(came_s, amount * self._scale, again) for (came_s, again), amount in self._parts.items()]
