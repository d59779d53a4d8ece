"""A stream's way out of a replica that leaves: while it goes on there, a place elsewhere is found and takes its KV over.

Promise: `outcome` says where the stream goes on and how it comes there, in every case: with its KV; with notice but without KV; after a
crash, at the place that was being prepared and with the blocks that had come; or nowhere in particular (the next free place). No place
and no ticket is kept that is not used, and nobody goes on copying for a client who has gone. While there is no free place the source goes
on until its deadline, which may come nearer meanwhile. Price: one task per stream that leaves.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from cluster.console import error_line
from serve.migrate import Leaving, Moved, Offer, Pulled
from serve.router import Choice, Place, Wanted

__all__ = ["NEW", "Arrival", "Departure", "Places", "Pulls"]

FAREWELL_S = 2.0
"""A source whose stream has been taken over says so within this time, or is not waited for."""
RETRY_S = 0.2
"""After so long a source that could not be read is asked again."""
PULL_S = 5.0
"""How long a destination may take to say that it has all, once the source has given the stream up."""
_log = logging.getLogger(__name__)


class Places(Protocol):
    """Who has room (serve.router.Board)."""

    async def place(self, max_wait_s: float, wanted: Wanted) -> Choice | None:
        """A place for one stream, or None if there is none in time."""

    def leave(self, replica_id: str) -> None:
        """The stream is not there any more."""

    def suspect(self, replica_id: str) -> None:
        """This replica has let a stream down: none there for a while."""


class Pulls(Protocol):
    """The replicas as destinations."""

    async def pull(self, place: Place, offer: Offer, ticket: str, left_s: float) -> Pulled:
        """Have the stream taken over there. Raises whatever ends a replica; cancelled, the replica stops and keeps nothing."""

    def release(self, place: Place, ticket: str) -> None:
        """What is kept there under the ticket is anybody's: the stream will not come. Returns at once, whatever has become of that one."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """How a stream comes to its next place."""

    pulled: Pulled
    choice: Choice | None = None
    """Where, if that is settled."""
    ticket: str = ""
    """What its KV is kept under there."""
    num_computed_before: int | None = None
    """Of its tokens, those computed where it comes from when that gave it up; None if that said nothing."""


NEW = Arrival(Pulled("new", ""))
"""A stream that has been nowhere yet."""


class Departure:
    """Of one stream from one replica; nothing happens until it begins."""

    def __init__(self, places: Places, pulls: Pulls, wanted: Wanted, ticket: str) -> None:
        self._places, self._pulls, self._wanted, self._ticket = places, pulls, wanted, ticket
        self._task: asyncio.Task[None] | None = None
        self._deadline_s = math.inf
        self._farewell_at: float | None = None  # on the event loop's clock
        self._num_computed: int | None = None
        self._over = False
        self._choice: Choice | None = None  # a place that is kept for the stream
        self._pulled: Pulled | None = None
        self._failed = Pulled("crash", "its source was lost while it was taken over")
        self._limit: asyncio.Timeout | None = None

    def begin(self, leaving: Leaving) -> None:
        """The source says that it leaves; said again, the nearest deadline counts (whoever copies from the source hears of it there)."""
        self._deadline_s = min(self._deadline_s, leaving.deadline_s)
        if self._task is None:
            self._places.suspect(leaving.offer.replica_id)  # it may know of its drain before the board does
            self._task = asyncio.create_task(self._take_over(leaving.offer))

    def given_up(self, moved: Moved) -> None:
        """The source has given the stream up."""
        self._num_computed = None if moved.snapshot is None else moved.snapshot.num_computed

    def bound(self, limit: asyncio.Timeout | None) -> None:
        """Let this wait for the source end soon after the destination has all, whatever the source says meanwhile but farewell."""
        self._limit = limit
        if limit is not None and self._farewell_at is not None and not limit.expired():
            limit.reschedule(min(limit.when() or math.inf, self._farewell_at))

    async def outcome(self, end: str) -> Arrival:
        """Where to go on, after the source's stream ended: moved or lost (otherwise nowhere)."""
        return replace(await self._arrival(end), num_computed_before=self._num_computed)

    async def _arrival(self, end: str) -> Arrival:
        if end not in ("moved", "lost"):
            return NEW
        if self._task is None:
            return Arrival(Pulled("crash", "its source was lost") if end == "lost" else Pulled("bounce", "its source takes nothing new"))
        if end == "moved" and self._choice is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(PULL_S):
                    await asyncio.shield(self._task)
            if self._choice is not None and self._pulled is None:
                self._places.suspect(self._choice.place.replica_id)
                self._abandon()
        choice, self._choice, self._over = self._choice, None, True
        if choice is None:
            self._task.cancel()
            how = "crash" if end == "lost" else "recompute"
            return Arrival(Pulled(how, "no place took it over before its source had gone"))
        return Arrival(self._pulled or self._failed, choice, self._ticket)

    def close(self) -> None:
        """Stop; a place that was not used is free again, and so is what was kept there."""
        if self._task is not None and not self._over:  # where the stream has gone, a copying ends by itself, and what came is for use
            self._task.cancel()
        self._abandon()

    async def _take_over(self, offer: Offer) -> None:
        while (left_s := self._deadline_s - time.time()) > 0.0 and not self._over:
            self._choice = self._choice or await self._places.place(left_s, self._wanted)
            if self._choice is None:
                return
            place = self._choice.place
            try:
                pulled = await self._pulls.pull(place, offer, self._ticket, self._deadline_s - time.time())
            except Exception as error:  # whatever ends a destination is the same: another is found
                _log.warning("%s: %s takes nothing over: %s", self._ticket, place.replica_id, error_line(error))
                self._places.suspect(place.replica_id)
                self._give_back()
                continue
            if pulled.how != "crash":
                self._pulled = pulled
                self._farewell_at = asyncio.get_running_loop().time() + FAREWELL_S
                self.bound(self._limit)
                return
            self._failed = pulled
            await asyncio.sleep(RETRY_S)  # a source that is gone ends this; one that is not can be asked again, for what is missing

    def _abandon(self) -> None:
        if self._choice is not None:
            self._pulls.release(self._choice.place, self._ticket)
        self._give_back()

    def _give_back(self) -> None:
        if self._choice is not None:
            self._places.leave(self._choice.place.replica_id)
            self._choice = None
