"""A stream that goes on elsewhere: the gateway's record of one choice, and what each frame from a replica does to it.

Promise: whatever the sources do (hand over, die, repeat frames, arrive late, skip some), the record grows only by exactly the
tokens and the text of the undisturbed run, in order, each once; and at any moment it says with which request a new source
continues. That works because tokens and text are functions of the request alone (see DESIGN.md, "the tokens are the
request"), so every frame names the position at which it begins, and a position settles what is new.
Price: one record per choice, as long as its answer. After: dynamo's `migration.rs` (each token joins the request, so a retry is
the same request further along), which leaves out n > 1 and what a frame repeats.

    source ── Tokens(start=7, …) ─> record ── Fresh: what the client has not seen yet
              Leaving                         nothing: the source goes on, and a place elsewhere is prepared (serve/moves/relay.py)
              Moved | lost          └──────── resume: the request to continue with, on the next attempt
              Done(…)               └──────── finished
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from serve.engine.request import Request, Sampling
from serve.engine.snapshot import Snapshot

__all__ = ["Begun", "Done", "Frame", "Fresh", "Leaving", "Moved", "Offer", "Pulled", "Record", "Refused", "Standing", "Tokens"]


@dataclass(frozen=True, slots=True)
class Begun:
    """The first frame of a source: it has admitted the request."""

    node_id: str
    """The Ray node that the source runs on."""
    replica_id: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """Some tokens and the text that they let out; either may be empty, for text is held back while it may still change."""

    start: int
    """Position of the first of `tokens` in the answer, counted from the answer's very first token."""
    tokens: tuple[int, ...]
    text_start: int
    """Position of `text` in the answer's text, in characters."""
    text: str
    logprobs: tuple[Any, ...] | None = None
    """One entry per token, if the request asks for log probabilities."""
    num_computed: int = 0
    """How many of the tokens that the request came with the source has computed (the others it had in its cache, or was given)."""


@dataclass(frozen=True, slots=True)
class Done:
    """The last tokens and the reason for the end, in one frame, so that no death can come between them."""

    last: Tokens
    finish_reason: str
    num_cached_tokens: int = 0
    num_drafted: int = 0
    num_accepted: int = 0


@dataclass(frozen=True, slots=True)
class Offer:
    """Where a destination finds a stream that leaves, to take its KV over."""

    source: str
    """The name of the source's actor, by which another replica reaches it whether or not Serve still sends requests there."""
    replica_id: str
    stream: str
    """The stream's name at the source."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A stream as it stands at its source."""

    hashes: tuple[bytes, ...]
    """Of its full computed blocks, first to last."""
    num_tokens: int
    """Tokens known: the prompt and what was emitted."""
    num_leaving: int
    """Streams that the source still has, this one included."""
    left_s: float = math.inf
    """Seconds until the source's machine is gone, as far as it knows now."""
    sampling: Sampling | None = None
    """What the stream asks for: its grammar can be made ready where it goes."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """The source's machine goes away; it goes on with this stream until somebody takes it over, or the time is up."""

    deadline_s: float
    """When the machine is gone: unix seconds, `math.inf` if nobody knows."""
    offer: Offer


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a destination has taken over; the source has given the stream up, or is gone."""

    how: str
    """kv: all its blocks are here. recompute: they are not, or not all, by choice, for want of room, or because the source had no more
    time. crash: the source was lost meanwhile."""
    reason: str
    num_bytes: int = 0
    stages: int = 0
    """Rounds of copying, the last one included."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Moved:
    """The source gives the request up, whole, because its node is going away."""

    snapshot: Snapshot | None
    """State beyond the tokens that the next source can use; None when the request never ran here."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The source cannot run this request, and no other could: the client's mistake."""

    message: str


Frame = Begun | Tokens | Done | Leaving | Moved | Refused


@dataclass(frozen=True, slots=True)
class Fresh:
    """What a frame added to the record: to be sent to the client, once."""

    tokens: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[Any, ...] | None = None

    def __bool__(self) -> bool:
        return bool(self.tokens or self.text)


NOTHING = Fresh()


@dataclass(slots=True)
class Record:
    """Everything sent of one choice. `attempt` numbers its sources; only the latest one is believed."""

    request: Request
    """As first asked, with nothing emitted."""
    tokens: list[int] = field(default_factory=list)
    num_chars: int = 0
    """Characters of text sent."""
    attempt: int = 0
    must_resume: bool = True
    """Whether no source is at work: the stream needs a new attempt."""
    finish: Done | None = None
    """How the answer ended; None while it goes on."""
    num_moves: int = 0
    """Sources that handed the stream over."""
    num_deaths: int = 0
    """Sources that were lost without notice."""
    fruitless_deaths: int = 0
    """Of those, the latest in a row that brought nothing new."""

    def resume(self) -> tuple[int, Request]:
        """Start a new attempt: its number and the request its source gets (earlier sources are not believed any more)."""
        assert self.finish is None, f"{self.request.id}: is finished"
        self.attempt += 1
        self.must_resume = False
        return self.attempt, replace(self.request, emitted=tuple(self.tokens))

    def take(self, attempt: int, frame: Tokens | Done | Moved) -> Fresh:
        """Believe what is new in a frame from source number `attempt`; may set `finish` or `must_resume`."""
        if attempt != self.attempt or self.finish is not None or self.must_resume:
            return NOTHING
        if isinstance(frame, Moved):
            self.num_moves += 1
            self.must_resume = True
            return NOTHING
        part = frame.last if isinstance(frame, Done) else frame
        ends_early = isinstance(frame, Done) and part.start + len(part.tokens) < len(self.tokens)
        if ends_early or not self._joins(part):
            self._lose()
            return NOTHING
        fresh = self._new(part)
        if fresh:
            self.fruitless_deaths = 0
        if isinstance(frame, Done):
            self.finish = frame
        return fresh

    def lost(self, attempt: int) -> None:
        """Source number `attempt` died, or ended without a last frame."""
        if attempt == self.attempt and self.finish is None and not self.must_resume:
            self._lose()

    def _lose(self) -> None:
        self.num_deaths += 1
        self.fruitless_deaths += 1
        self.must_resume = True

    def _joins(self, part: Tokens) -> bool:
        """Whether a frame continues the record without a gap and agrees with it where they overlap."""
        seen = self.tokens[part.start : part.start + len(part.tokens)]
        return part.start <= len(self.tokens) and part.text_start <= self.num_chars and seen == list(part.tokens[: len(seen)])

    def _new(self, part: Tokens) -> Fresh:
        known = len(self.tokens) - part.start
        tokens = part.tokens[known:]
        text = part.text[self.num_chars - part.text_start :]
        self.tokens.extend(tokens)
        self.num_chars += len(text)
        logprobs = None if part.logprobs is None else part.logprobs[known:]
        return Fresh(tokens, text, logprobs) if tokens or text else NOTHING
