"""Follows one stream through as many replicas as it takes, and keeps a journal of where it stayed.

Promise: `follow` returns when the record is finished, whatever machines vanish on the way; it gives up, with an OpenAI error,
only when no replica is free for `max_wait_s`, when the request itself is refused, or when it has cost several replicas
their life without a new token (then it is the request that kills). A replica that is silent for `SILENCE_S` counts as gone.
Price: one task per choice. It knows no Ray: places come from a board, frames from whatever `open_source` opens.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from serve.engine.request import Request
from serve.migrate import Begun, Frame, Fresh, Record, Refused
from serve.protocol import ApiError
from serve.router import Choice, Place

__all__ = ["Journal", "OpenSource", "Places", "Source", "Stay", "follow"]

SILENCE_S = 10.0
"""A replica sends at least an empty frame a second (see BEAT_S); ten missing ones are a dead machine whose socket is still open."""
MAX_FRUITLESS = 4
"""Replicas lost in a row without one new token before the request itself is suspected."""
_log = logging.getLogger(__name__)


class Source(Protocol):
    """Frames from a replica."""

    def __aiter__(self) -> AsyncIterator[Frame]: ...

    def cancel(self) -> Any:
        """Stop it: nobody listens any more."""


class Places(Protocol):
    """Who has room (serve.router.Board)."""

    async def place(self, max_wait_s: float) -> Choice | None:
        """A place for one stream, or None if there is none in time."""

    def leave(self, replica_id: str) -> None:
        """The stream is not there any more."""

    def suspect(self, replica_id: str) -> None:
        """This replica has let a stream down: none there for a while."""


OpenSource = Callable[[Place, Request, int], Source]
"""(where, the request to go on with, characters already out) -> frames."""


@dataclass(slots=True)
class Stay:
    """One stream's time at one replica. Times are unix seconds."""

    stream: str
    attempt: int
    deployment: str
    replica_id: str
    node_id: str
    reason: str
    """Why this place."""
    start_s: float
    first_s: float | None = None
    """When its first token arrived."""
    last_s: float | None = None
    """When its latest token arrived."""
    end_s: float | None = None
    end: str | None = None
    """None while it is there; else done, moved, lost, refused or cancelled."""
    num_tokens: int = 0

    def heard(self, fresh: Fresh) -> None:
        """New tokens arrived."""
        if fresh.tokens:
            self.last_s = time.time()
            self.first_s = self.first_s or self.last_s
            self.num_tokens += len(fresh.tokens)


@dataclass(slots=True)
class Journal:
    """The latest stays, for timelines and for finding out what happened."""

    stays: deque[Stay] = field(default_factory=lambda: deque(maxlen=10_000))

    def enter(self, choice: Choice, request: Request, attempt: int) -> Stay:
        """A stream begins to stay somewhere."""
        place = choice.place
        stay = Stay(request.id, attempt, place.deployment, place.replica_id, place.node_id, choice.reason, time.time())
        self.stays.append(stay)
        return stay

    def rows(self) -> list[dict[str, Any]]:
        """Plain data, oldest first."""
        return [asdict(stay) for stay in self.stays]


async def follow(
    record: Record, places: Places, open_source: OpenSource, send: Callable[[Fresh], Any], *, journal: Journal, max_wait_s: float
) -> None:
    """Drive `record` to its end, calling `send` with what is new. Raises ApiError when that cannot be done."""
    while record.finish is None:
        if record.fruitless_deaths >= MAX_FRUITLESS:
            raise ApiError(500, f"this request ended {record.fruitless_deaths} replicas in a row without a new token; it is given up")
        choice = await places.place(max_wait_s)
        if choice is None:
            raise ApiError(503, f"no replica became free within {max_wait_s:g} s; try again later", code="no_capacity")
        attempt, request = record.resume()
        stay = journal.enter(choice, request, attempt)
        try:
            await _listen(record, attempt, open_source(choice.place, request, record.num_chars), stay, send)
        finally:
            stay.end_s, stay.end = time.time(), stay.end or "cancelled"
            places.leave(choice.place.replica_id)
        if stay.end in ("moved", "lost"):
            places.suspect(stay.replica_id)


async def _listen(record: Record, attempt: int, source: Source, stay: Stay, send: Callable[[Fresh], Any]) -> None:
    """Take one source's frames to its end; says in `stay.end` how that was."""
    frames, exhausted, moves = aiter(source), False, record.num_moves
    try:
        while not exhausted:
            async with asyncio.timeout(SILENCE_S):
                frame = await anext(frames, None)
            if frame is None:
                exhausted = True
            elif isinstance(frame, Begun):
                stay.node_id, stay.replica_id = frame.node_id, frame.replica_id  # the chosen one, unless it had just gone
            elif isinstance(frame, Refused):
                stay.end = "refused"
                raise ApiError(400, frame.message)
            elif fresh := record.take(attempt, frame):
                stay.heard(fresh)
                send(fresh)
            elif record.must_resume and record.num_moves == moves:
                break  # it skipped something or contradicts itself
    except ApiError:
        raise
    except Exception as error:  # whatever ends a source is the same to its stream: it goes on elsewhere
        _log.warning("%s: source %d at %s is lost: %s", record.request.id, attempt, stay.replica_id, _line(error))
    finally:
        if not exhausted:
            source.cancel()
    record.lost(attempt)
    stay.end = "done" if record.finish else "moved" if record.num_moves > moves else "lost"


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]
