"""The training loop: one step, then many. It knows neither Ray nor DeepSpeed.

Promise: a step's loss is the mean over all target tokens of its global batch, however they fall on workers and
micro-batches (a worker with fewer targets does not skew it); the same recipe and data give the same steps whether or not
the run was interrupted. Price: counting the targets of a global batch reads its segment ids on every worker.
Source: nanochat's `base_train.py` for the shape; the step itself is behind `Stepper`, so one process, DeepSpeed and
whatever comes later run the same loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from train.corpus import Batch, Cursor, Source
from train.optimize.guard import Guard
from train.optimize.schedule import learning_rate_at
from train.recipe import Recipe
from train.state import Record, Skip, State

__all__ = ["Stepper", "held_out_loss", "run"]


class Stepper(Protocol):
    """A model and its optimizer, on one process or on many."""

    rank: int
    world_size: int
    replica: int
    """Which copy of the model this worker holds a part of, and with it which share of the data it takes."""
    num_replicas: int

    def step(
        self, batches: Sequence[Batch], num_labels: int, learning_rate: float, judge: Callable[[float], None] = lambda _: None
    ) -> tuple[float, float]:
        """One update from this worker's micro-batches; `num_labels` is the global batch's. Gives (global mean loss, gradient norm).

        `judge` is told the loss once the gradients are there and before anything is updated, on every worker the same.
        """

    def nll(self, batch: Batch) -> float:
        """Σ −log p over this replica's batch, without an update."""

    def total(self, value: float) -> float:
        """The sum of every worker's `value`; all must call it."""

    def remember(self) -> None:
        """Copy all that a step changes into host memory, over the copy before (each worker its share)."""

    def go_back(self) -> None:
        """Return to what was remembered."""


def run(
    stepper: Stepper,
    source: Source,
    recipe: Recipe,
    *,
    state: State,
    report: Callable[[Record], None] = lambda _: None,
    checkpoint: Callable[[State], None] = lambda _: None,
    undone: Callable[[Skip], None] = lambda _: None,
    stop: Callable[[State], bool] = lambda _: False,
) -> State:
    """Train from `state` to the recipe's last step, or until `stop`, which is asked after each step, says so.

    `checkpoint` is called every so many steps, after the last, and when the guard went back to an earlier step, of which `undone` is told:
    a checkpoint of a later step, but of fewer windows of data, is then void.
    """
    cursor = Cursor(recipe.seed, recipe.global_batch, len(source), state.window, source.index, source.mixture)
    guard = Guard(stepper, recipe, state)
    before = time.monotonic()
    while state.step < recipe.steps:
        record, reason = one_step(stepper, source, recipe, state, cursor, guard, before)
        before, cursor = before + record.seconds, cursor.next()
        if reason is None:
            state = state.after(record)
            report(record)
            if state.step % recipe.checkpoint_every == 0 or state.step == recipe.steps:
                checkpoint(state)
        else:
            state = guard.undo(state, record, reason)
            undone(state.skips[-1])
            checkpoint(state)
        if stop(state):
            break
    return state


def one_step(
    stepper: Stepper, source: Source, recipe: Recipe, state: State, cursor: Cursor, guard: Guard, before: float
) -> tuple[Record, str | None]:
    """The step after `state`, and why it is a spike if it is one; `before` is when the step before it ended."""
    torch.manual_seed(hash((recipe.seed, cursor.step, stepper.replica)) & 0x7FFFFFFF)  # dropout is the step's, not the process's
    mine = cursor.share(stepper.replica, stepper.num_replicas)
    num_labels = source.num_labels(cursor.indices())
    batches = [source.batch(part) for part in np.split(mine, len(mine) // recipe.micro_batch)]
    rate, reasons = learning_rate_at(recipe, state.step), list[str | None]()
    loss, norm = stepper.step(batches, num_labels, rate, lambda loss: reasons.append(guard.judge(state, loss)))
    return Record(state.step + 1, loss, num_labels, time.monotonic() - before, rate, norm, cursor.step), reasons[0]


def held_out_loss(stepper: Stepper, source: Source, micro_batch: int) -> float:
    """Mean −log p per target token over all of `source`, its sequences dealt to the workers in turn."""
    mine = np.arange(stepper.replica, len(source), stepper.num_replicas)
    nll = sum(stepper.nll(source.batch(mine[i : i + micro_batch])) for i in range(0, len(mine), micro_batch))
    return stepper.total(nll) / max(1.0, stepper.total(source.num_labels(mine)) if len(mine) else stepper.total(0.0))
