"""Who serves a stream: a pure choice over what the gateway can see, and the board on which it sees it.

Promise: `choose` picks a deployment and a replica from loads, drains and recent failures, with its reason, and never one on a
draining node; the same inputs give the same choice, in production, in tests and in a simulator. Serve's own routers
(serve/request_router.py) write the board and honour the choice. Neither knows Ray.
Price: a pass over the replicas per request.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

__all__ = ["BOARD", "Board", "Choice", "Place", "Register", "choose"]

SUSPECT_S = 2.0
"""How long a replica that failed a stream gets no new one: about as long as Serve needs to notice that it is dead."""
RECHECK_S = 0.25
"""How often one who waits for a place looks again, for drains and suspicions that end without an event."""


@dataclass(frozen=True, slots=True)
class Place:
    """A replica that could take a stream."""

    deployment: str
    replica_id: str
    node_id: str
    load: int
    """Streams it has."""
    capacity: int
    """Streams it takes at most."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a stream goes, and why."""

    place: Place
    reason: str


def choose(places: Sequence[Place], *, draining: Collection[str], suspects: Collection[str] = ()) -> Choice | None:
    """The least loaded place; among equals the earlier deployment (list the cheaper first). None where there is none.

    >>> spot, fixed = Place("spot", "s1", "n1", 3, 8), Place("on_demand", "d1", "n2", 4, 8)
    >>> choose([spot, fixed], draining=()).place.replica_id
    's1'
    >>> choose([spot, fixed], draining={"n1"}).reason
    'load 4 of 8, the least of 1; left out: 1 draining'
    """
    order = list(dict.fromkeys(place.deployment for place in places))
    staying = [place for place in places if place.node_id not in draining]
    trusted = [place for place in staying if place.replica_id not in suspects]
    free = [place for place in trusted if place.load < place.capacity]
    if not free:
        return None
    best = min(free, key=lambda place: (place.load, order.index(place.deployment), place.replica_id))
    left_out = {
        "draining": len(places) - len(staying), "suspect": len(staying) - len(trusted), "full": len(trusted) - len(free),
    }  # fmt: skip
    why = ", ".join(f"{count} {name}" for name, count in left_out.items() if count)
    return Choice(best, f"load {best.load} of {best.capacity}, the least of {len(free)}" + (f"; left out: {why}" if why else ""))


class Register(Protocol):
    """Knows one deployment's replicas."""

    def places(self, streams: Counter[str]) -> list[Place]:
        """Its replicas as places; `streams` counts this process's streams by replica."""


class Board:
    """What this process knows of the replicas: its routers write it, its gateway reads it and waits on it.

    One per process, because Ray Serve makes the routers itself, in a thread of their own, and hands them nothing.
    """

    def __init__(self) -> None:
        self.draining: Callable[[], Collection[str]] = tuple
        """The nodes that drain, by id; the gateway puts its watch here."""
        self._routers: dict[str, Register] = {}
        self._streams: Counter[str] = Counter()
        self._suspects: dict[str, float] = {}  # never changed, only replaced, and by `suspect` alone: routers read it in their thread
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def places(self) -> list[Place]:
        """Every running replica of every deployment, the cheaper deployment first (they register in that order)."""
        return [place for router in list(self._routers.values()) for place in router.places(self._streams)]

    def choose(self) -> Choice | None:
        """Where the next stream goes, as things stand."""
        return self.among(self.places())

    def among(self, places: Sequence[Place]) -> Choice | None:
        """The same choice, among these places only."""
        return choose(places, draining=self.draining(), suspects=_living(self._suspects))

    async def place(self, max_wait_s: float) -> Choice | None:
        """The choice for a new stream, which counts as one of its place's from now on; None if there is none in time."""
        deadline = time.monotonic() + max_wait_s
        entry = (asyncio.get_running_loop(), asyncio.Event())
        self._waiting.add(entry)
        try:
            while (choice := self.choose()) is None:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return None
                await _set_within(entry[1], min(RECHECK_S, left_s))
        finally:
            self._waiting.discard(entry)
        self._streams[choice.place.replica_id] += 1
        return choice

    def leave(self, replica_id: str) -> None:
        """A stream has left its place."""
        self._streams[replica_id] -= 1
        self._streams += Counter()  # drops what has come down to zero
        self.changed()

    def suspect(self, replica_id: str) -> None:
        """This replica has let a stream down: none there for a while."""
        self._suspects = {**_living(self._suspects), replica_id: time.monotonic() + SUSPECT_S}

    def register(self, deployment: str, router: Register) -> None:
        """A router has been made for a deployment."""
        self._routers[deployment] = router

    def changed(self) -> None:
        """Wake those who wait for a place; callable from any thread."""
        for loop, event in list(self._waiting):
            loop.call_soon_threadsafe(event.set)


def _living(suspects: Mapping[str, float]) -> dict[str, float]:
    """The suspicions that have not ended."""
    now = time.monotonic()
    return {replica: until for replica, until in suspects.items() if until > now}


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    event.clear()


BOARD = Board()
