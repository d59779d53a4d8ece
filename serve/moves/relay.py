"""Follows one stream through as many replicas as it takes, and keeps a journal of where it stayed and how it came there.

Promise: `follow` returns when the record is finished, whatever machines vanish on the way; it gives up, with an OpenAI error,
only when no replica is free for `max_wait_s`, when the request itself is refused, or when it has cost several replicas
their life without a new token (then it is the request that kills). A replica that is silent for `SILENCE_S` counts as gone.
While a source that leaves goes on, the next place is found and takes the KV over (serve/moves/departure.py); then the stream follows.
Price: two tasks per choice at most. It knows no Ray: places come from a board, frames from whatever `Replicas` open.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from cluster.console import error_line
from serve.engine.request import Request
from serve.migrate import Begun, Frame, Fresh, Leaving, Moved, Record, Refused
from serve.moves.departure import NEW, Departure, Places, Pulls
from serve.moves.journal import Journal, Stay
from serve.protocol import ApiError
from serve.router import ANYWHERE, Place, Wanted

__all__ = ["Journal", "Replicas", "Source", "Stay", "follow"]

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


class Replicas(Pulls, Protocol):
    """The engines, wherever they run."""

    def open(self, place: Place, request: Request, num_chars: int, ticket: str) -> Source:
        """Frames of the request to go on with, of whose answer `num_chars` characters are out, and whose KV is there under the ticket."""


async def follow(
    record: Record,
    places: Places,
    replicas: Replicas,
    send: Callable[[Fresh], Any],
    *,
    journal: Journal,
    max_wait_s: float,
    wanted: Wanted = ANYWHERE,
) -> None:
    """Drive `record` to its end, calling `send` with what is new. Raises ApiError when that cannot be done."""
    arrival, heard_s = NEW, None
    while record.finish is None:
        if record.fruitless_deaths >= MAX_FRUITLESS:
            if arrival.choice is not None:
                replicas.release(arrival.choice.place, arrival.ticket)
                places.leave(arrival.choice.place.replica_id)
            raise ApiError(500, f"this request ended {record.fruitless_deaths} replicas in a row without a new token; it is given up")
        choice = arrival.choice or await places.place(max_wait_s, wanted)
        if choice is None:
            raise ApiError(503, f"no replica became free within {max_wait_s:g} s; try again later", code="no_capacity")
        attempt, request = record.resume()
        came, stay = arrival, journal.enter(choice, request, attempt, arrival, heard_s)
        departure = Departure(places, replicas, wanted, ticket=f"{request.id}@{attempt}")
        try:
            source = replicas.open(choice.place, request, record.num_chars, arrival.ticket)
            await _listen(record, attempt, source, stay, send, journal, departure)
            if stay.end in ("moved", "lost"):
                places.suspect(stay.replica_id)
            arrival = await departure.outcome(stay.end or "lost")
        finally:
            departure.close()
            if came.ticket and (stay.first_s is None or stay.replica_id != choice.place.replica_id):
                replicas.release(choice.place, came.ticket)  # who would do so itself, with its first tokens, has not come
            journal.leave(stay)
            places.leave(choice.place.replica_id)
        heard_s = stay.last_s or heard_s


async def _listen(
    record: Record, attempt: int, source: Source, stay: Stay, send: Callable[[Fresh], Any], journal: Journal, departure: Departure
) -> None:
    """Take one source's frames to its end; says in `stay.end` how that was."""
    frames, exhausted, moves = aiter(source), False, record.num_moves
    try:
        while not exhausted:
            async with asyncio.timeout(SILENCE_S) as limit:
                departure.bound(limit)
                frame = await anext(frames, None)
            if frame is None:
                exhausted = True
            elif isinstance(frame, Begun):
                stay.begun(frame)
            elif isinstance(frame, Leaving):
                departure.begin(frame)
            elif isinstance(frame, Refused):
                stay.end = "refused"
                raise ApiError(400, frame.message)
            elif isinstance(frame, Moved):
                record.take(attempt, frame)
                departure.given_up(frame)
            elif fresh := record.take(attempt, frame):
                journal.heard(stay, fresh, frame)
                send(fresh)
            elif record.must_resume and record.num_moves == moves:
                break  # it skipped something or contradicts itself
    except ApiError:
        raise
    except Exception as error:  # whatever ends a source is the same to its stream: it goes on elsewhere
        _log.warning("%s: source %d at %s is lost: %s", record.request.id, attempt, stay.replica_id, error_line(error))
    finally:
        departure.bound(None)
        if not exhausted:
            source.cancel()
    record.lost(attempt)
    stay.end = "done" if record.finish else "moved" if record.num_moves > moves else "lost"
