"""Who serves a stream: a pure choice over what the gateway can see, and the board on which it sees it.

Promise: `choose` picks a deployment and a replica from loads, drains, recent failures and what replicas have in their prefix caches, with
its reason, and never one on a draining node; the same inputs give the same choice, in production, in tests and in a simulator. Serve's
own routers (serve/request_router.py) write the board and honour the choice. Neither knows Ray.
Price: a pass over the replicas per request, and 200 bytes for each of the latest prefixes.
After: the cache-aware router of SGLang (arXiv 2312.07104), which too follows the prefix only while loads are about even.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from serve.engine.blocks import block_hash, root_hash
from serve.patience import within

__all__ = ["ANYWHERE", "BOARD", "Affinity", "Board", "Choice", "Place", "Register", "Wanted", "choose", "prefixes"]

SUSPECT_S = 2.0
"""How long a replica that failed a stream gets no new one: about as long as Serve needs to notice that it is dead."""
SLACK = 4
"""A place that has the prefix is taken while it has at most so many streams more than the least loaded: a prefix saves a prefill,
and every stream in a batch slows the others' tokens."""
NUM_PREFIXES = 8192
"""Prefixes remembered."""
LEVELS = (1, 2, 4, 8, 16, 32, 64, 128)
"""A prompt's prefixes of so many blocks are remembered and looked for."""
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
class Wanted:
    """What a request would like to find where it goes."""

    prefixes: tuple[bytes, ...] = ()
    """Digests of its prompt's beginnings, the shortest first."""


ANYWHERE = Wanted()


def prefixes(prompt: Sequence[int], block_size: int, *, tenant: str = "", adapter: str = "") -> tuple[bytes, ...]:
    """Digests of the beginnings of a prompt: none of it (for an adapter: batches that share one are cheaper), then 1, 2, 4, … blocks.

    >>> [len(prefixes(range(n), 16)) for n in (15, 16, 33, 64)]
    [0, 1, 2, 3]
    """
    digest = root_hash(tenant, adapter)
    found = [digest] if adapter else []
    for count in range(1, min(len(prompt) // block_size, LEVELS[-1]) + 1):
        digest = block_hash(digest, prompt[(count - 1) * block_size : count * block_size])
        if count in LEVELS:
            found.append(digest)
    return tuple(found)


class Affinity:
    """Which replica has computed which prefixes, as far as this process sent it there; the latest only."""

    def __init__(self, size: int = NUM_PREFIXES) -> None:
        self._size = size
        self._seen: OrderedDict[tuple[bytes, str], None] = OrderedDict()

    def remember(self, wanted: Wanted, replica_id: str) -> None:
        """A request has gone to a replica."""
        for prefix in wanted.prefixes:
            self._seen[prefix, replica_id] = None
            self._seen.move_to_end((prefix, replica_id))
        while len(self._seen) > self._size:
            self._seen.popitem(last=False)

    def match(self, wanted: Wanted, replica_id: str) -> int:
        """How many of the prefixes the replica has, from the longest it has down."""
        return next((n for n in range(len(wanted.prefixes), 0, -1) if (wanted.prefixes[n - 1], replica_id) in self._seen), 0)


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a stream goes, and why."""

    place: Place
    reason: str


def choose(
    places: Sequence[Place], *, draining: Collection[str], suspects: Collection[str] = (), match: Callable[[str], int] = lambda _: 0,
    leaving: Collection[str] = (),
) -> Choice | None:  # fmt: skip
    """The place with the longest known prefix (`match` of its replica's id) among those about as loaded as the least loaded; else that
    one; among equals the earlier deployment (list the cheaper first). None where there is none. A machine that has been given notice
    (`leaving`) and does not drain yet is taken where the others have `SLACK` streams more: what begins there will have to move.

    >>> spot, fixed = Place("spot", "s1", "n1", 3, 8), Place("on_demand", "d1", "n2", 4, 8)
    >>> choose([spot, fixed], draining=()).place.replica_id
    's1'
    >>> choose([spot, fixed], draining=(), match={"s1": 0, "d1": 2}.get).reason
    'has the prefix; load 4 of 8, the least of 2 is 3'
    >>> choose([spot, fixed], draining={"n1"}).reason
    'load 4 of 8, the least of 1; left out: 1 draining'
    """
    order = list(dict.fromkeys(place.deployment for place in places))
    staying = [place for place in places if place.node_id not in draining]
    trusted = [place for place in staying if place.replica_id not in suspects]
    free = [place for place in trusted if place.load < place.capacity]
    if not free:
        return None
    loads = {place: place.load + (SLACK if place.node_id in leaving else 0) for place in free}
    least = min(loads.values())
    near = [(match(place.replica_id) if load <= least + SLACK else 0, place) for place, load in loads.items()]
    matched, best = min(near, key=lambda entry: (-entry[0], loads[entry[1]], order.index(entry[1].deployment), entry[1].replica_id))
    left_out = {
        "draining": len(places) - len(staying), "suspect": len(staying) - len(trusted), "full": len(trusted) - len(free),
    }  # fmt: skip
    why = ", ".join(f"{count} {name}" for name, count in left_out.items() if count)
    load = f"load {best.load} of {best.capacity}, the least of {len(free)}"
    reason = f"has the prefix; {load} is {least}" if matched else load
    return Choice(best, reason + (f"; left out: {why}" if why else ""))


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
        self.leaving: Callable[[], Collection[str]] = tuple
        """Those that have been given notice and do not drain yet."""
        self._affinity = Affinity()
        self._routers: dict[str, Register] = {}
        self._streams: Counter[str] = Counter()
        self._suspects: dict[str, float] = {}  # never changed, only replaced, and by `suspect` alone: routers read it in their thread
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def places(self) -> list[Place]:
        """Every running replica of every deployment, the cheaper deployment first (they register in that order)."""
        return [place for router in list(self._routers.values()) for place in router.places(self._streams)]

    def choose(self, wanted: Wanted = ANYWHERE) -> Choice | None:
        """Where the next stream goes, as things stand."""
        return self.among(self.places(), wanted)

    def among(self, places: Sequence[Place], wanted: Wanted = ANYWHERE) -> Choice | None:
        """The same choice, among these places only."""
        match = partial(self._affinity.match, wanted)
        suspects = _living(self._suspects)
        return choose(places, draining=self.draining(), suspects=suspects, match=match, leaving=self.leaving())

    async def place(self, max_wait_s: float, wanted: Wanted = ANYWHERE) -> Choice | None:
        """The choice for a new stream, which counts as one of its place's from now on; None if there is none in time."""
        deadline = time.monotonic() + max_wait_s
        entry = (asyncio.get_running_loop(), asyncio.Event())
        self._waiting.add(entry)
        try:
            while (choice := self.choose(wanted)) is None:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return None
                await within(entry[1], min(RECHECK_S, left_s))
                entry[1].clear()
        finally:
            self._waiting.discard(entry)
        self._streams[choice.place.replica_id] += 1
        self._affinity.remember(wanted, choice.place.replica_id)
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


BOARD = Board()
