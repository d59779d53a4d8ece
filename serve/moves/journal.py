"""Where streams stayed, how they came there and how long they paused: the gateway's record for timelines, metrics and post-mortems.

Promise: one row per stream and replica, with the reasons of both choices (which place, which way). Price: the latest ten thousand
rows in memory. Times are unix seconds.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from serve.engine.request import Request
from serve.migrate import Begun, Done, Fresh, Tokens
from serve.moves.departure import Arrival
from serve.router import Choice

__all__ = ["Journal", "Stay"]


@dataclass(slots=True)
class Stay:
    """One stream's time at one replica."""

    stream: str
    attempt: int
    deployment: str
    replica_id: str
    node_id: str
    reason: str
    """Why this place."""
    start_s: float
    how: str = "new"
    """How it came: new; kv (all its KV before it); recompute (with notice, but without all its KV); crash (its source was lost); bounce
    (its source was leaving and had not begun)."""
    why: str = ""
    """Why this way."""
    num_bytes: int = 0
    """KV that came before it."""
    stages: int = 0
    """In so many rounds of copying, the last one included."""
    num_known: int = 0
    """Tokens it came with: the prompt, and what was emitted elsewhere."""
    num_computed_before: int | None = None
    """Of these, computed where it came from when it was given up there; None where nobody said."""
    num_computed: int | None = None
    """Of these, computed here."""
    num_computed_again: int | None = None
    """Of those computed here, computed before (a source that was still computing a prompt had not computed all it knew)."""
    before_s: float | None = None
    """When its latest token elsewhere arrived."""
    gap_s: float | None = None
    """From its last token elsewhere to its first one here."""
    first_s: float | None = None
    """When its first token arrived."""
    last_s: float | None = None
    """When its latest token arrived."""
    end_s: float | None = None
    end: str | None = None
    """None while it is there; else done, moved, lost, refused or cancelled."""
    num_tokens: int = 0

    def begun(self, frame: Begun) -> None:
        """It has begun: at the place that was chosen, unless that had just gone."""
        if self.how == "kv" and frame.replica_id != self.replica_id:
            self.how, self.why = "recompute", f"elsewhere: its KV had come to {self.replica_id}, which did not take it"
        self.node_id, self.replica_id = frame.node_id, frame.replica_id

    def heard(self, fresh: Fresh, frame: Tokens | Done) -> bool:
        """New tokens arrived; whether they are the first ones here."""
        if not fresh.tokens:
            return False
        self.last_s = time.time()
        self.num_tokens += len(fresh.tokens)
        if self.first_s is not None:
            return False
        self.first_s = self.last_s
        self.gap_s = None if self.before_s is None else self.first_s - self.before_s
        self.num_computed = (frame.last if isinstance(frame, Done) else frame).num_computed
        if self.num_computed_before is not None:
            self.num_computed_again = max(0, self.num_computed - max(0, self.num_known - self.num_computed_before))
        return True


@dataclass(slots=True)
class Journal:
    """The latest stays."""

    moved: Callable[[str, float], Any] | None = None
    """Told of each stream that goes on elsewhere: how, and its gap in seconds."""
    stays: deque[Stay] = field(default_factory=lambda: deque(maxlen=10_000))

    def enter(self, choice: Choice, request: Request, attempt: int, arrival: Arrival, before_s: float | None) -> Stay:
        """A stream begins to stay somewhere; `before_s`: its latest token elsewhere."""
        place, pulled = choice.place, arrival.pulled
        stay = Stay(
            request.id, attempt, place.deployment, place.replica_id, place.node_id, choice.reason, time.time(),
            pulled.how, pulled.reason, pulled.num_bytes, pulled.stages,
            len(request.prompt) + len(request.emitted), arrival.num_computed_before, before_s=before_s,
        )  # fmt: skip
        self.stays.append(stay)
        return stay

    def heard(self, stay: Stay, fresh: Fresh, frame: Tokens | Done) -> None:
        """New tokens arrived where a stream stays."""
        if stay.heard(fresh, frame) and self.moved is not None and stay.gap_s is not None:
            self.moved("recompute" if stay.how == "bounce" else stay.how, stay.gap_s)

    def leave(self, stay: Stay) -> None:
        """It has left there."""
        stay.end_s, stay.end = time.time(), stay.end or "cancelled"

    def rows(self) -> list[dict[str, Any]]:
        """Plain data, oldest first."""
        return [asdict(stay) for stay in self.stays]
