"""The engine as a Ray Serve deployment: requests in, frames out, and every live stream handed over before the node goes.

Promise: the engine steps in a thread of its own and nothing waits on it; a stream whose reader goes away is cancelled at the
next step; from the moment this node drains (seen within 0.2 s) nothing is admitted, and every live request leaves as a
`Moved` frame at the next step's end, long before the deadline. A failed step fails the replica, aloud: its streams end with
the error, its health check fails, and Serve replaces it.
Price: one thread, and at most one frame per stream every `frame_s` seconds. Source: DESIGN.md, "Serving on machines that vanish".
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Protocol

import ray
import ray.serve

from cluster.preemption import DrainWatch
from serve.engine.config import EngineConfig
from serve.engine.request import Emission, Request
from serve.engine.snapshot import Snapshot
from serve.folder import adapter_folder, model_folder
from serve.migrate import Begun, Done, Frame, Moved, Refused, Tokens
from serve.stopping import on_stop

__all__ = ["EngineReplica", "EngineThread", "Outbox"]

BEAT_S = 1.0
"""A stream that has nothing to say says so this often: silence means that the machine is gone."""
_log = logging.getLogger(__name__)


class Steps(Protocol):
    """What the thread needs of an engine."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""

    def add(self, request: Request) -> None:
        """Take a request; ValueError if it cannot run."""

    def cancel(self, request_id: str) -> Any:
        """Forget a request."""

    def snapshot(self, request_id: str) -> Snapshot:
        """A live request as it stands."""

    def step(self) -> list[Emission]:
        """Advance every running request."""


News = tuple[str, Emission | Moved | Refused]
"""A request's id and what happened to it."""


class EngineThread:
    """Runs the engine; other threads leave it notes (`add`, `cancel`, `leave`), it delivers news after each step."""

    def __init__(self, engine: Steps, deliver: Callable[[list[News]], None], fail: Callable[[Exception], None]) -> None:
        """In the engine's thread, `deliver` is called with all news of a step, and `fail` once if a step raises."""
        self.failure: Exception | None = None
        self._engine, self._deliver, self._fail = engine, deliver, fail
        self._notes: list[Callable[[], Sequence[News]]] = []
        self._wake = threading.Condition()
        self._live: set[str] = set()
        self._leaving = False
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    def add(self, request: Request) -> None:
        """Admit a request, or give it back at once (`Moved`) when leaving."""
        self._note(lambda: self._admit(request))

    def cancel(self, request_id: str) -> None:
        """Nobody reads this stream any more."""
        self._note(lambda: self._forget(request_id))

    def leave(self) -> None:
        """The node goes away: hand over what lives, admit nothing from now on."""
        self._note(self._hand_over)

    def _note(self, note: Callable[[], Sequence[News]]) -> None:
        with self._wake:
            self._notes.append(note)
            self._wake.notify()

    def _run(self) -> None:
        try:
            while True:
                news = [item for note in self._next_notes() for item in note()]
                if self._engine.has_work:
                    emissions = self._engine.step()  # also of what was just cancelled: nobody's news any more
                    news += [(emission.request_id, emission) for emission in emissions if emission.request_id in self._live]
                    self._live -= {name for name, what in news if isinstance(what, Emission) and what.finish_reason}
                if news:
                    self._deliver(news)
        except Exception as error:
            _log.exception("the engine failed; this replica has to be replaced")
            self.failure = error
            self._fail(error)

    def _next_notes(self) -> list[Callable[[], Sequence[News]]]:
        with self._wake:
            while not (self._notes or self._engine.has_work):
                self._wake.wait()
            notes, self._notes = self._notes, []
        return notes

    def _admit(self, request: Request) -> Sequence[News]:
        if self._leaving:
            return [(request.id, Moved(None))]
        try:
            self._engine.add(request)
        except ValueError as error:
            return [(request.id, Refused(str(error)))]
        except Exception as error:  # a request that breaks its own admission is no reason to break the others' streams
            _log.exception("a request could not be admitted")
            return [(request.id, Refused(f"the request cannot be run ({type(error).__name__})"))]
        self._live.add(request.id)
        return []

    def _forget(self, request_id: str) -> Sequence[News]:
        if request_id in self._live:
            self._live.discard(request_id)
            self._engine.cancel(request_id)
        return []

    def _hand_over(self) -> Sequence[News]:
        self._leaving = True
        news: list[News] = [(name, Moved(self._engine.snapshot(name))) for name in sorted(self._live)]
        for name in sorted(self._live):
            self._engine.cancel(name)
        self._live.clear()
        return news


@dataclass(slots=True)
class Outbox:
    """One stream's frames, merged while they wait: emissions go in, as few frames as possible come out."""

    position: int
    """Tokens of the answer before the next frame."""
    num_chars: int
    """Characters of the answer before the next frame."""
    emissions: list[Emission] = field(default_factory=list)
    last: Moved | Refused | Exception | None = None
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, what: Emission | Moved | Refused | Exception) -> None:
        """Add one piece of news."""
        if isinstance(what, Emission):
            self.emissions.append(what)
        else:
            self.last = what
        if not isinstance(what, Emission) or what.finish_reason:
            self.ended.set()
        self.arrived.set()

    async def frame(self, patience_s: float) -> Frame:
        """The next frame: everything since the one before, or an empty one as a sign of life. Raises what failed the replica."""
        await _within(self.arrived, patience_s)
        if not self.emissions:
            if self.last is None:
                return Tokens(self.position, (), self.num_chars, "")
            if isinstance(self.last, Exception):
                raise RuntimeError(f"the engine failed: {self.last}") from self.last
            return self.last
        emissions, self.emissions = self.emissions, []
        if self.last is None:
            self.arrived.clear()
        return self._merge(emissions)

    def _merge(self, emissions: Sequence[Emission]) -> Tokens | Done:
        tokens = tuple(token for e in emissions for token in e.tokens)
        text = "".join(e.text for e in emissions)
        logprobs = None if emissions[-1].logprobs is None else tuple(p for e in emissions for p in e.logprobs or ())
        part = Tokens(self.position, tokens, self.num_chars, text, logprobs)
        self.position += len(tokens)
        self.num_chars += len(text)
        end = emissions[-1]
        if end.finish_reason is None:
            return part
        return Done(part, end.finish_reason, end.num_cached_tokens, end.num_drafted, end.num_accepted)


class EngineReplica:
    """One replica: an engine, its thread, and the streams it has."""

    def __init__(self, model: str, config: EngineConfig, frame_s: float = 0.02) -> None:
        """`model` and the adapters' folders are folders that this node can read, or s3://…"""
        from serve.engine.engine import Engine  # torch: only where the engine runs, not where the deployment is declared

        self._engine = Engine.load(model_folder(model), config.with_folders(adapter_folder))
        self._frame_s = frame_s
        self._numbers = count()
        self._outboxes: dict[str, Outbox] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._node_id = ray.get_runtime_context().get_node_id()
        self._replica_id = ray.serve.get_replica_context().replica_id.unique_id
        self._thread = EngineThread(self._engine, self._deliver, self._fail)
        self._watch = DrainWatch()
        self._watch.add_callback(lambda _: self._thread.leave())
        on_stop(lambda grace_s: self._thread.leave())  # scaled down or replaced: the same as a drain, with Serve's grace as the deadline

    async def stream(self, request: Request, num_chars: int, *, replica_id: str = "") -> AsyncIterator[Frame]:
        """Frames of the answer from where `request` stands (`num_chars` characters of it are out), the last one Done, Moved or Refused.

        `replica_id` is read on the way here, by the router.
        """
        self._loop = asyncio.get_running_loop()
        name = f"{request.id}#{next(self._numbers)}"  # a stream may come back here before its former self has been cancelled
        box = self._outboxes[name] = Outbox(len(request.emitted), num_chars)
        over = False
        try:
            yield Begun(self._node_id, self._replica_id)
            self._thread.add(replace(request, id=name))
            if self._thread.failure is not None:  # it may have failed before it could see this request
                box.put(self._thread.failure)
            while not over:
                frame = await box.frame(BEAT_S)
                over = isinstance(frame, Done | Moved | Refused)
                yield frame
                await _within(box.ended, self._frame_s)  # let more arrive, unless it is the end that has
        finally:
            del self._outboxes[name]
            if not over:
                self._thread.cancel(name)

    def stats(self) -> dict[str, Any]:
        """The engine's own figures, and where it runs."""
        return {
            **self._engine.stats(),
            "node_id": self._node_id,
            "replica_id": self._replica_id,
            "draining": self._watch.deadline is not None,
        }

    def check_health(self) -> None:
        """Serve's question; raises if the engine has failed."""
        if self._thread.failure is not None:
            raise RuntimeError(f"the engine failed: {self._thread.failure}")

    def _deliver(self, news: list[News]) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._sort_out, news)

    def _fail(self, error: Exception) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(lambda: [box.put(error) for box in self._outboxes.values()])

    def _sort_out(self, news: list[News]) -> None:
        for name, what in news:
            if (box := self._outboxes.get(name)) is not None:
                box.put(what)


async def _within(event: asyncio.Event, seconds: float) -> None:
    """Return when the event is set, or after `seconds`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
