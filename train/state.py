"""Where a run stands: its steps, what each of them did, and the data that it passed over.

Promise: a state is all that a checkpoint must hold beside weights and optimizer; its history is the committed one (a step that was
undone is not in it), and every window of data is in it exactly once: as a step's, or as passed over. Price: one record a step.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Record", "Skip", "State"]


@dataclass(frozen=True, slots=True)
class Record:
    """What one step did."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Mean −log p over the target tokens of the global batch, in nats, before the step's update."""
    tokens: int
    """Target tokens of the global batch."""
    seconds: float
    """Wall time since the step before (checkpoints included)."""
    learning_rate: float
    gradient_norm: float
    window: int = 0
    """Which global batch of the data's order it took, from 0."""


@dataclass(frozen=True, slots=True)
class Skip:
    """Windows of data that a run passed over after a spike: those of the steps it undid, and the one that spiked."""

    step: int
    """The step it went back to."""
    first: int
    """The first window that was passed over."""
    last: int
    """The last one."""
    loss: float
    """The loss that spiked."""
    reason: str


@dataclass(frozen=True, slots=True)
class State:
    """A run between two steps."""

    step: int = 0
    records: list[Record] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)

    @property
    def window(self) -> int:
        """The window of data that the next step takes: as many steps on as windows were passed over."""
        return self.step + sum(skip.last - skip.first + 1 for skip in self.skips)

    def after(self, record: Record) -> State:
        """The state one step on."""
        assert (record.step, record.window) == (self.step + 1, self.window)
        return State(record.step, [*self.records, record], self.skips)

    def without(self, spiked: Record, step: int, reason: str) -> State:
        """The state of an earlier `step`, past the data of all steps since and of the one that spiked."""
        assert step <= self.step
        undone = self.step - step
        first = self.records[-undone].window if undone else spiked.window
        before = [skip for skip in self.skips if skip.last < first]  # one that lies between the steps undone becomes part of this one
        return State(step, self.records[: len(self.records) - undone], [*before, Skip(step, first, spiked.window, spiked.loss, reason)])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> State:
        return cls(data["step"], [Record(**record) for record in data["records"]], [Skip(**skip) for skip in data["skips"]])

    def final_loss(self) -> float:
        """Mean loss per target token over the last twentieth of the steps (one batch alone is noisy)."""
        last = self.records[-max(1, len(self.records) // 20) :]
        return sum(r.loss * r.tokens for r in last) / max(1, sum(r.tokens for r in last))

    def tokens_per_second(self) -> float:
        """Target tokens per second over the run, without its first step, which warms caches."""
        timed = self.records[1:] or self.records
        return sum(r.tokens for r in timed) / max(1e-9, sum(r.seconds for r in timed))
