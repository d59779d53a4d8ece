"""One stream's way out of a replica: emissions go in as steps bring them, as few frames as possible come out.

Promise: frames number tokens and characters from the answer's very beginning, nothing is lost or repeated in merging, what the
stream ends with comes last, and a stream with nothing to say still gives a sign of life. Price: one object per stream, in one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from serve.engine.request import Emission
from serve.migrate import Done, Frame, Leaving, Moved, Refused, Tokens
from serve.patience import within

__all__ = ["Outbox"]


@dataclass(slots=True)
class Outbox:
    """One stream's frames, merged while they wait: emissions go in, as few frames as possible come out."""

    position: int
    """Tokens of the answer before the next frame."""
    num_chars: int
    """Characters of the answer before the next frame."""
    emissions: list[Emission] = field(default_factory=list)
    leaving: Leaving | None = None
    """To be told next, before anything else."""
    last: Moved | Refused | Exception | None = None
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    urgent: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, what: Emission | Leaving | Moved | Refused | Exception) -> None:
        """Add one piece of news."""
        if isinstance(what, Emission):
            self.emissions.append(what)
        elif isinstance(what, Leaving):
            self.leaving = what
        else:
            self.last = what
        if not isinstance(what, Emission) or what.finish_reason:
            self.urgent.set()
        self.arrived.set()

    async def wait(self, seconds: float) -> None:
        """Let more arrive for a frame, at most so long, and not when there is something that must go at once."""
        await within(self.urgent, seconds)

    async def frame(self, patience_s: float) -> Frame:
        """The next frame: everything since the one before, or an empty one as a sign of life. Raises what failed the replica."""
        await within(self.arrived, patience_s)
        if self.leaving is not None:
            return self._leave(self.leaving)
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

    def _leave(self, leaving: Leaving) -> Leaving:
        self.leaving = None
        if self.last is None and not any(emission.finish_reason for emission in self.emissions):
            self.urgent.clear()
            if not self.emissions:
                self.arrived.clear()
        return leaving

    def _merge(self, emissions: Sequence[Emission]) -> Tokens | Done:
        tokens = tuple(token for e in emissions for token in e.tokens)
        text = "".join(e.text for e in emissions)
        logprobs = None if emissions[-1].logprobs is None else tuple(p for e in emissions for p in e.logprobs or ())
        part = Tokens(self.position, tokens, self.num_chars, text, logprobs, emissions[-1].num_computed_tokens)
        self.position += len(tokens)
        self.num_chars += len(text)
        end = emissions[-1]
        if end.finish_reason is None:
            return part
        return Done(part, end.finish_reason, end.num_cached_tokens, end.num_drafted, end.num_accepted)
