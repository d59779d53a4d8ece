"""The destination's side of a move: take a stream's KV over from a source that goes on with it, in stages.

Promise: when `pull` returns, the source has given the stream up (or is gone), and the blocks that came are kept under the ticket until
the stream has come too; whatever happens on the way, the gateway's record is enough to go on. It decides first whether copying is
worth it (serve/handover.py), with the rates that it has measured itself. Price: as long as the stages take; the stream itself pauses only
for the last one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from cluster.console import error_line
from serve.engine_thread import EngineThread, Gone, Steps
from serve.handover import Decision, MoveKv, Rate, Situation, decide, is_last
from serve.lend import Lends
from serve.migrate import Pulled

__all__ = ["Puller"]

STAGE_S = 10.0
"""A stage that takes longer is given up: the source's machine is gone, and nobody has noticed yet."""
LEARN_BYTES = 1 << 20
"""Smaller stages say more about the delay of a call than about the link."""
NO_MORE = 1 << 62
"""A number that no block has: a last stage from here on stops the stream and brings nothing."""
_log = logging.getLogger(__name__)
T = TypeVar("T")


class Puller:
    """Takes streams over for one replica, and remembers how fast its link has been."""

    def __init__(
        self, thread: EngineThread, *, block_size: int, block_bytes: int, tokens_per_s: Callable[[], float], move_kv: MoveKv = "auto"
    ) -> None:
        """`tokens_per_s`: how many prompt tokens the engine computes in a second, as measured now."""
        self.thread, self.block_size, self.block_bytes, self.tokens_per_s = thread, block_size, block_bytes, tokens_per_s
        self.move_kv = move_kv
        self.link = Rate(100e6)  # 1 MiB at a time between two object stores (see serve/lend.py)

    async def pull(self, lender: Lends, ticket: str, left_s: float) -> Pulled:
        """Take over the stream that `lender` speaks for; its machine has `left_s` seconds left. Raises only if this replica has failed."""
        move = _Move(self, lender, ticket, time.monotonic() + left_s)
        try:
            await move.run()
        except Gone:
            move.how = "kv" if move.num_bytes else "recompute"
            move.reason = "it left its source before it was taken over" + (" to its end" if move.num_bytes else "")
        except Exception as error:  # whatever ends a source is the same here: its stream goes on from the gateway's record
            if self.thread.failure is not None:
                raise
            _log.warning("%s: the source is lost in stage %d: %s", ticket, move.stages, error_line(error))
            move.how, move.reason = "crash", f"the source was lost in stage {move.stages}: {error_line(error)}"
        return Pulled(move.how, move.reason, move.num_bytes, move.stages, time.monotonic() - move.began)

    def release(self, ticket: str) -> None:
        """The stream has come: it holds the blocks itself."""
        self.thread.ask(lambda engine: engine.kv_release(ticket))


class _Move:
    """One stream on its way here."""

    def __init__(self, puller: Puller, lender: Lends, ticket: str, deadline: float) -> None:
        self._puller, self._lender, self._ticket, self._deadline = puller, lender, ticket, deadline
        self.how, self.reason, self.num_bytes, self.stages, self.began = "recompute", "", 0, 0, time.monotonic()

    async def run(self) -> None:
        """Decide; copy in stages while the stream goes on; end it at its source."""
        decision, first = await self._decide()
        self.how, self.reason = decision.how, decision.reason
        last = first == NO_MORE
        while True:
            began = time.monotonic()
            first, has_room = await self._stage(first, last)
            if last:
                return
            if not has_room:
                self.reason += f"; no room beyond block {first}"
                first = NO_MORE
            last = not has_room or is_last(self.stages, time.monotonic() - began, self._left_s)

    @property
    def _left_s(self) -> float:
        return self._deadline - time.monotonic()

    async def _decide(self) -> tuple[Decision, int]:
        """KV or not, and the first block to copy."""
        async with asyncio.timeout(STAGE_S):
            standing = await self._lender.look()
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

    async def _stage(self, first: int, last: bool) -> tuple[int, bool]:
        """Take what there is from block `first` on; the block to go on with, and whether there was room for all."""
        self.stages += 1
        began, before, has_room = time.monotonic(), self.num_bytes, True
        async with asyncio.timeout(min(STAGE_S, max(self._left_s, 0.0))):
            async for blocks in self._lender.stage(first, last=last):
                if blocks.hashes and has_room:
                    num_here = await self._ask(lambda engine, given=blocks: engine.kv_in(self._ticket, given))  # type: ignore[misc]
                    self.num_bytes += blocks.num_bytes
                    first, has_room = first + num_here, num_here == len(blocks.hashes)
        if self.num_bytes - before >= LEARN_BYTES:
            self._puller.link.observe(self.num_bytes - before, time.monotonic() - began)
        return first, has_room

    async def _ask(self, question: Callable[[Steps], T]) -> T:
        return await asyncio.wrap_future(self._puller.thread.ask(question))
