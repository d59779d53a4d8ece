"""What a training job is, what its workers are told, and what they come back with.

Promise: plain picklable data; what a job trains is a few callables, so pretrain and tune share the workers, the loop and the restarts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from train.elastic.size import Attempt
from train.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from train.checkpoint import Saved
    from train.corpus import Sequences
    from train.state import State

__all__ = ["Ended", "Growth", "Job", "Orders", "Outcome"]

Growth = Literal["worth", "always", "never"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What the workers do. The callables run on every worker and must be picklable (module-level functions, partials)."""

    label: str
    """What the progress bar is called."""
    recipe: Recipe
    """Its `num_workers` is the most that the job uses; it goes on with fewer when machines leave."""
    folder: str
    """Folder, local or s3://, that all workers can write: its `checkpoints` and Ray Train's own records (`ray`) go there."""
    build: Callable[[], PreTrainedModel]
    """The model at step 0, equal on every worker."""
    source: Callable[[], Sequences]
    """What to train on."""
    export: Callable[[PreTrainedModel, dict[str, Tensor]], None]
    """Writes the result from the whole weights; runs on worker 0."""
    held_out: Callable[[], Sequences] | None = None
    """What to measure the loss on before and after."""
    max_failures: int = 3
    """Failures in a row, without a new checkpoint between them and without a machine lost, after which the job gives up; -1: never."""
    min_workers: int = 1
    """With room for fewer it waits for machines."""
    growth: Growth = "worth"
    """Whether it stops to go on with more workers when machines come: where that saves more time than it costs, always, or never."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Orders:
    """What one group of workers is told."""

    job: Job
    recipe: Recipe
    """The job's, for as many workers as they are."""
    key: bytes
    """Under which they report, in the cluster's key-value store."""
    attempt: str
    """The group's name, later ones in later order."""
    saved: Saved | None
    """The checkpoint that they go on from."""
    num_threads: int
    save_s: float | None = None
    """Seconds that a checkpoint will take, judging by earlier groups; None: nobody knows."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a group of workers came to its end by its own decision; everything it did is committed."""

    why: Literal["finished", "left", "grew"]
    reason: str
    step: int
    step_s: float
    """Median seconds of a step."""
    save_s: float | None
    """Seconds from the copy of a checkpoint to its commit, the longest of the last few."""
    blocked_s: float
    """Seconds for which the loop stood still for checkpoints."""
    state: State | None = None
    """Of a finished run."""
    precision: str = ""
    loss_before: float | None = None
    loss_after: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished job knows of itself."""

    state: State
    precision: str
    resumed_at: int
    """The step of the checkpoint that the last group of workers went on from; 0 for an undisturbed run."""
    loss_before: float | None = None
    loss_after: float | None = None
    attempts: tuple[Attempt, ...] = ()
    """The groups of workers, in order; those of an earlier start of the same verb are not among them."""
