"""The engine in a thread of its own: others leave it notes, which it reads between steps; it tells what a step brought.

Promise: nothing waits on the engine but who asks it something; from `leave` on nothing is admitted; a stream that is given up ends
with all that it had emitted. A failed step fails the thread, aloud. Price: one thread; a note waits for the end of the step under way.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar

from serve.engine.kv_blocks import KvBlocks
from serve.engine.request import Emission, Request
from serve.engine.snapshot import Snapshot
from serve.migrate import Moved, Refused, Standing

__all__ = ["EngineThread", "Gone", "News", "Steps"]

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Gone(Exception):
    """No live stream has that name (any more)."""


class Steps(Protocol):
    """What the thread needs of an engine."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""

    def add(self, request: Request) -> None:
        """Take a request; ValueError if it cannot run."""

    def cancel(self, request_id: str) -> object:
        """Forget a request."""

    def snapshot(self, request_id: str) -> Snapshot:
        """A live request as it stands."""

    def step(self) -> list[Emission]:
        """Advance every running request."""

    def kv_chain(self, request_id: str) -> tuple[bytes, ...]:
        """Hashes of a request's full computed blocks."""

    def kv_out(self, request_id: str, first: int = 0, last: int | None = None) -> KvBlocks:
        """The bytes of some of them."""

    def kv_missing(self, hashes: Sequence[bytes], ticket: str | None = None) -> tuple[int, ...]:
        """Which of these are not here; those that are here are kept under the ticket."""

    def kv_in(self, ticket: str, blocks: KvBlocks) -> int:
        """Put blocks in, kept under the ticket; how many found room."""

    def kv_release(self, ticket: str) -> None:
        """Keep them no longer."""


News = tuple[str, Emission | Moved | Refused]
"""A request's id and what happened to it."""


class EngineThread:
    """Runs the engine; other threads leave it notes (`add`, `cancel`, `ask`, …), it delivers news after each step."""

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
        """The node goes away: admit nothing from now on, and go on with what lives."""
        self._note(self._close)

    def hand_over(self) -> None:
        """The node goes away now: give up, as `Moved`, whatever still lives."""
        self._note(self._hand_over)

    def ask(self, question: Callable[[Steps], T]) -> Future[T]:
        """Ask the engine something between two steps, which wait for the answer."""
        return self._answer(lambda: question(self._engine))

    def look(self, request_id: str) -> Future[Standing]:
        """How a stream stands. The future raises Gone if it is not here."""
        return self._answer(lambda: self._look(request_id))

    def give_up(self, request_id: str, first: int) -> Future[tuple[Moved, KvBlocks]]:
        """Stop a stream: what its reader is to be told, and its full blocks from `first` on. The future raises Gone if it is not here."""
        return self._answer(lambda: self._release(request_id, first))

    def _answer(self, question: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()

        def note() -> Sequence[News]:
            if future.set_running_or_notify_cancel():  # the asker may have given up meanwhile
                try:
                    future.set_result(question())
                except Exception as error:  # it is the asker's, not the engine's
                    future.set_exception(error)
            return []

        if self.failure is not None:
            future.set_exception(RuntimeError(f"the engine failed: {self.failure}"))
            return future
        self._note(note)
        return future

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

    def _close(self) -> Sequence[News]:
        self._leaving = True
        return []

    def _hand_over(self) -> Sequence[News]:
        self._leaving = True
        news: list[News] = [(name, Moved(self._engine.snapshot(name))) for name in sorted(self._live)]
        for name in sorted(self._live):
            self._forget(name)
        return news

    def _look(self, request_id: str) -> Standing:
        if request_id not in self._live:
            raise Gone(request_id)
        now = self._engine.snapshot(request_id)
        return Standing(self._engine.kv_chain(request_id), len(now.origin.prompt) + len(now.emitted), len(self._live))

    def _release(self, request_id: str, first: int) -> tuple[Moved, KvBlocks]:
        if request_id not in self._live:
            raise Gone(request_id)
        blocks, last = self._engine.kv_out(request_id, first), Moved(self._engine.snapshot(request_id))
        self._forget(request_id)
        return last, blocks
