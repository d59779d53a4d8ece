"""The engine in a thread of its own: others leave it notes and questions, which it reads between steps; it tells what a step brought.

Promise: nothing waits on the engine but who asks it something; from `leave` on nothing is admitted; a stream that is given up ends
with all that it had emitted. Notes (requests, cancellations, drains) go before everything. Questions of each kind (moves; texts to be read)
may take as long as the steps between them, so that either kind alone leaves live streams half of the time, however many ask and however
long an answer takes; where there is nothing to step they have it all. A failed step fails the thread, aloud, and whoever waits for an
answer. Price: one thread; a note waits for the end of the step or the answer under way. After: deficit round robin (Shreedhar and
Varghese, SIGCOMM 1995), where one that took too much makes up for it later.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from serve.engine.kv_blocks import KvBlocks
from serve.engine.request import Emission, Request
from serve.engine.snapshot import Snapshot
from serve.migrate import Moved, Refused, Standing

__all__ = ["EngineThread", "Gone", "News", "Steps"]

STATS_S = 0.2
"""While the engine steps, its figures are so old at most."""
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

    def stats(self) -> dict[str, float]:
        """Its figures."""


News = tuple[str, Emission | Moved | Refused]
"""A request's id and what happened to it."""


@dataclass(slots=True)
class _Question:
    """What somebody asks, and waits for."""

    ask: Callable[[], Any]
    future: Future[Any]

    def answer(self) -> None:
        """What it raises is the asker's, not the engine's."""
        if self.future.set_running_or_notify_cancel():  # the asker may have given up meanwhile
            try:
                self.future.set_result(self.ask())
            except Exception as error:
                self.future.set_exception(error)

    def fail(self, failure: Exception) -> None:
        """There will be no answer."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(RuntimeError(f"the engine failed: {failure}"))


@dataclass(slots=True)
class _Line:
    """Questions of one kind, and the seconds that they may take before the next step; below zero, what they have taken too much."""

    waiting: deque[_Question] = field(default_factory=deque)
    credit_s: float = 0.0

    def answer_first(self) -> None:
        """Of those that wait; it costs what it takes."""
        began = time.perf_counter()
        self.waiting.popleft().answer()
        self.credit_s -= time.perf_counter() - began

    def stepped(self, seconds: float) -> None:
        """A step took so long: questions may take as long, less what they took too much before. Nothing is saved up."""
        self.credit_s = min(self.credit_s, 0.0) + seconds


class EngineThread:
    """Runs the engine; other threads leave it notes (`add`, `cancel`, …) and questions (`ask`, …), it delivers news after each step."""

    def __init__(self, engine: Steps, deliver: Callable[[list[News]], None], fail: Callable[[Exception], None]) -> None:
        """In the engine's thread, `deliver` is called with all news of a step, and `fail` once if a step raises."""
        self.failure: Exception | None = None
        self.stats = engine.stats()
        """The engine's figures, `STATS_S` old at most; as they stood between two steps."""
        self._stats_at = time.monotonic()
        self._engine, self._deliver, self._fail = engine, deliver, fail
        self._notes: list[Callable[[], Sequence[News]]] = []
        self._moves, self._readings = _Line(), _Line()
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

    def ask(self, question: Callable[[Steps], T], *, reading: bool = False) -> Future[T]:
        """Ask the engine something between two steps, which wait for the answer. `reading`: it is a text to be read, not part of a move."""
        return self._enlist(self._readings if reading else self._moves, lambda: question(self._engine))

    def look(self, request_id: str) -> Future[Standing]:
        """How a stream stands. The future raises Gone if it is not here."""
        return self._enlist(self._moves, lambda: self._look(request_id))

    def give_up(self, request_id: str, first: int) -> Future[tuple[Moved, KvBlocks]]:
        """Stop a stream: what its reader is to be told, and its full blocks from `first` on. The future raises Gone if it is not here."""
        return self._enlist(self._moves, lambda: self._release(request_id, first))

    def _enlist(self, line: _Line, ask: Callable[[], T]) -> Future[T]:
        question = _Question(ask, Future())
        with self._wake:
            failure = self.failure
            if failure is None:
                line.waiting.append(question)
                self._wake.notify()
        if failure is not None:
            question.fail(failure)
        return question.future

    def _note(self, note: Callable[[], Sequence[News]]) -> None:
        with self._wake:
            self._notes.append(note)
            self._wake.notify()

    def _run(self) -> None:
        try:
            while True:
                news = [item for note in self._next_notes() for item in note()]
                if self._engine.has_work:
                    news += self._step()
                self._publish()
                if news:
                    self._deliver(news)
                self._answer_some()
        except Exception as error:
            _log.exception("the engine failed; this replica has to be replaced")
            self._break(error)

    def _next_notes(self) -> list[Callable[[], Sequence[News]]]:
        with self._wake:
            if not self._engine.has_work:
                self._moves.credit_s = self._readings.credit_s = 0.0  # nobody was kept waiting
            while not (self._notes or self._engine.has_work or self._moves.waiting or self._readings.waiting):
                self._wake.wait()
            notes, self._notes = self._notes, []
        return notes

    def _step(self) -> list[News]:
        began = time.perf_counter()
        emissions = self._engine.step()  # also of what was just cancelled: nobody's news any more
        for line in (self._moves, self._readings):
            line.stepped(time.perf_counter() - began)
        news: list[News] = [(emission.request_id, emission) for emission in emissions if emission.request_id in self._live]
        self._live -= {emission.request_id for emission in emissions if emission.finish_reason}
        return news

    def _answer_some(self) -> None:
        """As many questions as may go before the next step; where there is none, one, and then who came meanwhile."""
        for line in (self._moves, self._readings):
            while line.waiting and (line.credit_s > 0.0 or not self._engine.has_work):
                line.answer_first()
                if not self._engine.has_work:
                    self._publish()
                    return

    def _publish(self) -> None:
        if not self._engine.has_work or time.monotonic() - self._stats_at >= STATS_S:
            self.stats, self._stats_at = self._engine.stats(), time.monotonic()

    def _break(self, error: Exception) -> None:
        with self._wake:
            self.failure = error
        for line in (self._moves, self._readings):
            while line.waiting:
                line.waiting.popleft().fail(error)
        self._fail(error)

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
        num_tokens = len(now.origin.prompt) + len(now.emitted)
        return Standing(self._engine.kv_chain(request_id), num_tokens, len(self._live), sampling=now.origin.sampling)

    def _release(self, request_id: str, first: int) -> tuple[Moved, KvBlocks]:
        if request_id not in self._live:
            raise Gone(request_id)
        blocks, last = self._engine.kv_out(request_id, first), Moved(self._engine.snapshot(request_id))
        self._forget(request_id)
        return last, blocks
