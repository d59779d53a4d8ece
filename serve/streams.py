"""The streams of one replica: requests in, frames out, and every live stream taken over elsewhere before the machine goes.

Promise: the engine steps in a thread of its own and nothing waits on it; a stream whose reader goes away is cancelled at the
next step, and the KV that was kept for it is anybody's. From `leave` on nothing is admitted; the streams go on, each says so to its reader
(`Leaving`), who has it taken over by another replica with its KV (serve/moves/pull.py), and what is still here `MARGIN_S` before the
deadline leaves as `Moved`, to be computed again.
Price: one thread, and at most one frame per stream every `frame_s` seconds. It knows no Ray; serve/replica.py is its Ray Serve deployment.
Source: DESIGN.md, "Serving on machines that vanish".
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serve.engine.config import EngineConfig
from serve.engine.grammar import Grammars
from serve.engine.request import Request, Sampling
from serve.engine_thread import EngineThread, News, Steps
from serve.migrate import Begun, Done, Frame, Leaving, Moved, Offer, Pulled, Refused, Tokens
from serve.moves.handover import MARGIN_S, MoveKv
from serve.moves.lend import Lender, Lends
from serve.moves.outbox import Outbox
from serve.moves.pull import Puller
from serve.reading import embedded

__all__ = ["StreamEngine", "Streams"]

BEAT_S = 1.0
"""A stream that has nothing to say says so this often: silence means that the machine is gone."""


class StreamEngine(Steps, Protocol):
    """What the streams need of an engine (serve.engine.engine.Engine)."""

    config: EngineConfig
    grammars: Grammars

    @property
    def kv_block_bytes(self) -> int:
        """What a block of KV weighs."""

    @property
    def prompt_tokens_per_s(self) -> float:
        """Prompt tokens that a second computes, as measured now."""


class Streams:
    """An engine, its thread, and the streams it has."""

    def __init__(
        self, engine: StreamEngine, *, node_id: str, replica_id: str, actor: str = "", frame_s: float = 0.02, move_kv: MoveKv = "auto"
    ) -> None:
        """`actor` is the name by which other replicas reach this one."""
        self.replica_id, self._node_id, self._actor, self._frame_s = replica_id, node_id, actor, frame_s
        self._engine, self._numbers = engine, count()
        self._outboxes: dict[str, Outbox] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deadline_s: float | None = None  # None: this replica stays
        self._thread = EngineThread(engine, self._deliver, self._fail)
        self.lender = Lender(self._thread, self._deliver, engine.kv_block_bytes, lambda: self._left_s)
        self.puller = Puller(
            self._thread,
            block_size=engine.config.block_size,
            block_bytes=engine.kv_block_bytes,
            tokens_per_s=lambda: engine.prompt_tokens_per_s,
            move_kv=move_kv,
            make_ready=self._make_ready,
        )

    @property
    def failure(self) -> Exception | None:
        """What ended the engine, if something did."""
        return self._thread.failure

    @property
    def stats(self) -> dict[str, float]:
        """The engine's figures."""
        return self._thread.stats

    @property
    def leaving(self) -> bool:
        """Whether this replica will be gone."""
        return self._deadline_s is not None

    @property
    def _left_s(self) -> float:
        return math.inf if self._deadline_s is None else self._deadline_s - time.time()

    async def stream(self, request: Request, num_chars: int, ticket: str = "") -> AsyncGenerator[Frame]:
        """Frames of the answer from where `request` stands (`num_chars` characters of it are out), the last one Done, Moved or Refused.

        `ticket` is what `pull` kept KV under for this stream.
        """
        self._loop = asyncio.get_running_loop()
        yield Begun(self._node_id, self.replica_id)
        if self.leaving:
            yield Moved(None)
            return
        name = f"{request.id}#{next(self._numbers)}"  # a stream may come back here before its former self has been cancelled
        box = self._outboxes[name] = Outbox(len(request.emitted), num_chars)
        over = False
        try:
            await self._make_ready(request.sampling)
            self._thread.add(replace(request, id=name))
            if self.failure is not None:  # it may have failed before it could see this request
                box.put(self.failure)
            while not over:
                frame = await box.frame(BEAT_S)
                over = isinstance(frame, Done | Moved | Refused)
                if ticket and not over and not (isinstance(frame, Tokens) and frame.tokens):
                    self.puller.keep(ticket)
                elif ticket:
                    self.puller.release(ticket)
                    ticket = ""
                yield frame
                await box.wait(self._frame_s)
        finally:
            del self._outboxes[name]
            if not over:
                self._thread.cancel(name)
            if ticket:
                self.puller.release(ticket)

    async def pull(self, lender: Lends, ticket: str, left_s: float) -> Pulled:
        """Take a stream over from a replica that leaves: its KV, as far as that is worth it, kept under `ticket`; the stream comes then."""
        if self.leaving:
            raise RuntimeError(f"{self.replica_id} takes nothing over: it leaves itself")
        return await self.puller.pull(lender, ticket, left_s)

    async def embed(self, texts: Sequence[Sequence[int]], adapter: str) -> NDArray[np.float32]:
        """Embeddings [n, hidden] of token ids, read between the steps of the streams."""
        return await embedded(self._thread, texts, adapter)

    async def _make_ready(self, sampling: Sampling | None) -> None:
        """Have a request's grammar compiled beside the engine's thread, in which it would hold every stream up."""
        if sampling is not None and sampling.guided_by is not None:
            with suppress(ValueError):  # the engine says the same when the request comes
                await asyncio.to_thread(self._engine.grammars.prepare, sampling)

    def leave(self, deadline_s: float) -> None:
        """This replica will be gone at a time (unix seconds, `math.inf` for nobody knows when). Called from any thread, maybe again."""
        self._deadline_s = min(deadline_s, math.inf if self._deadline_s is None else self._deadline_s)
        self._thread.leave()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._announce)
        if self._deadline_s < math.inf:
            timer = threading.Timer(max(self._deadline_s - MARGIN_S - time.time(), 0.0), self._thread.hand_over)
            timer.daemon = True
            timer.start()

    def _announce(self) -> None:
        for name, box in self._outboxes.items():
            box.put(Leaving(self._deadline_s or math.inf, Offer(self._actor, self.replica_id, name)))

    def _deliver(self, news: list[News]) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._sort_out, news)

    def _fail(self, error: Exception) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._tell_all, error)

    def _tell_all(self, error: Exception) -> None:
        for box in self._outboxes.values():
            box.put(error)

    def _sort_out(self, news: list[News]) -> None:
        for name, what in news:
            if (box := self._outboxes.get(name)) is not None:
                box.put(what)
