"""The destination's side of a move: take a stream's KV over from a source that goes on with it, in stages.

Promise: when `pull` returns, the source has given the stream up (or is gone), and the blocks that came are kept under the ticket until
the stream has come too; whatever happens on the way, the gateway's record is enough to go on. It decides first whether copying is
worth it (serve/moves/handover.py), with the rates that it has measured itself, and hears from the source before every stage how much time
there is. Cancelled, it keeps nothing. Price: as long as the stages take; the stream itself pauses only for the last one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from cluster.console import error_line
from serve.engine.kv_blocks import KvBlocks
from serve.engine.request import Sampling
from serve.engine_thread import EngineThread, Gone, Steps
from serve.migrate import Pulled, Standing
from serve.moves.handover import Decision, Link, MoveKv, Situation, decide, is_last
from serve.moves.lend import Lends

__all__ = ["Puller"]

QUIET_S = 10.0
"""A source that lets so long pass before its next slice is given up: its machine is gone, and nobody has noticed yet. A stage may take
longer: a slow link carries one slice after the other."""
NO_MORE = 1 << 62
"""A number that no block has: a last stage from here on stops the stream and brings nothing."""
_log = logging.getLogger(__name__)
T = TypeVar("T")


class Puller:
    """Takes streams over for one replica, and remembers how fast its link has been."""

    def __init__(
        self,
        thread: EngineThread,
        *,
        block_size: int,
        block_bytes: int,
        tokens_per_s: Callable[[], float],
        make_ready: Callable[[Sampling | None], Awaitable[None]],
        move_kv: MoveKv = "auto",
    ) -> None:
        """`tokens_per_s`: how many prompt tokens the engine computes in a second, as measured now; `make_ready` for what a stream asks."""
        self.thread, self.block_size, self.block_bytes, self.tokens_per_s = thread, block_size, block_bytes, tokens_per_s
        self.make_ready, self.move_kv = make_ready, move_kv
        self.link = Link(100e6)  # 1 MiB at a time between two object stores (see serve/moves/lend.py)

    async def pull(self, lender: Lends, ticket: str, left_s: float) -> Pulled:
        """Take over the stream that `lender` speaks for; its machine has `left_s` seconds left. Raises only if this replica has failed."""
        move = _Move(self, lender, ticket, time.monotonic() + left_s)
        try:
            await move.run()
        except asyncio.CancelledError:
            self.release(ticket)  # after whatever this move has asked of the engine
            raise
        except Gone:
            move.how, move.reason = "recompute", "it left its source before it was taken over"
            if move.num_bytes:
                move.reason += f" to its end: {move.num_bytes / 1e6:.1f} MB had come"
        except Exception as error:  # whatever ends a source is the same here: its stream goes on from the gateway's record
            if self.thread.failure is not None:
                raise
            _log.warning("%s: the source is lost in stage %d: %s", ticket, move.stages, error_line(error))
            move.how, move.reason = "crash", f"the source was lost in stage {move.stages}: {error_line(error)}"
        return Pulled(move.how, move.reason, move.num_bytes, move.stages, time.monotonic() - move.began)

    def keep(self, ticket: str) -> None:
        """The stream has come, and waits for its turn in the engine."""
        self.thread.ask(lambda engine: engine.kv_missing((), ticket))

    def release(self, ticket: str) -> None:
        """The stream has told its first tokens (so it holds the blocks itself), or will not come."""
        self.thread.ask(lambda engine: engine.kv_release(ticket))


class _Move:
    """One stream on its way here."""

    def __init__(self, puller: Puller, lender: Lends, ticket: str, deadline: float) -> None:
        self._puller, self._lender, self._ticket, self._deadline = puller, lender, ticket, deadline
        self.how, self.reason, self.num_bytes, self.stages, self.began = "recompute", "", 0, 0, time.monotonic()

    async def run(self) -> None:
        """Decide; copy in stages while the stream goes on; end it at its source."""
        standing = await self._look()
        await self._puller.make_ready(standing.sampling)
        decision, first = await self._decide(standing)
        self.how, self.reason = decision.how, decision.reason
        last = first == NO_MORE
        while True:
            began, before = time.monotonic(), first
            first, has_room = await self._stage(first, len(standing.hashes), last)
            if not has_room:
                self.how, self.reason = "recompute", f"no room: of its KV {first} blocks came, and no more"
            if last:
                return
            took, standing = time.monotonic() - began, await self._look()
            last = not has_room or is_last(self.stages, took, first - before, self._left_s)
            first = first if has_room else NO_MORE

    @property
    def _left_s(self) -> float:
        return self._deadline - time.monotonic()

    async def _look(self) -> Standing:
        """How the stream stands. Its source may have less time than it had."""
        async with asyncio.timeout(QUIET_S):
            standing = await self._lender.look()
        self._deadline = min(self._deadline, time.monotonic() + standing.left_s)
        return standing

    async def _decide(self, standing: Standing) -> tuple[Decision, int]:
        """KV or not, and the first block to copy."""
        missing = await self._ask(lambda engine: engine.kv_missing(standing.hashes, self._ticket))
        decision = decide(
            Situation(
                num_tokens=standing.num_tokens,
                num_blocks=len(standing.hashes),
                num_missing=len(missing),
                block_size=self._puller.block_size,
                block_bytes=self._puller.block_bytes,
                bytes_per_s=self._puller.link.per_s,
                tokens_per_s=self._puller.tokens_per_s(),
                num_leaving=standing.num_leaving,
                left_s=self._left_s,
            ),
            self._puller.move_kv,
        )
        return decision, NO_MORE if decision.how == "recompute" else min(missing, default=len(standing.hashes))

    async def _stage(self, first: int, end: int, last: bool) -> tuple[int, bool]:
        """Take the blocks from `first` to `end` (the last time all the rest); the block to go on with, and whether there was room."""
        self.stages += 1
        since, has_room = time.monotonic(), True
        async for blocks in self._slices(first, end, last):
            if blocks.hashes and has_room:
                num_here = await self._ask(lambda engine, given=blocks: engine.kv_in(self._ticket, given))  # type: ignore[misc]
                self.num_bytes += blocks.num_bytes
                first, has_room = first + num_here, num_here == len(blocks.hashes)
                before, since = since, time.monotonic()
                self._puller.link.arrived(blocks.num_bytes, before, since)
        return first, has_room

    async def _slices(self, first: int, end: int, last: bool) -> AsyncIterator[KvBlocks]:
        """A stage's slices, none of which may be long in coming."""
        slices = aiter(self._lender.stage(first, end, last=last))
        while True:
            async with asyncio.timeout(min(QUIET_S, max(self._left_s, 0.0))):
                blocks = await anext(slices, None)
            if blocks is None:
                return
            yield blocks

    async def _ask(self, question: Callable[[Steps], T]) -> T:
        return await asyncio.wrap_future(self._puller.thread.ask(question))
