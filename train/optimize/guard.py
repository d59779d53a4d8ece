"""The spike guard: a loss that leaps is undone, and the data that it came from passed over.

Promise: when a step's loss is not a number, or lies more than `guard` robust deviations above the recent losses, the run returns to the
copy of its last good step, passes over the windows of data since, and says so; a run that spikes again and again from the same step ends
with one line. What is copied is known to be good: a step's loss is measured on the weights that the step before left, so the copy is
taken when that loss has been judged, before its own update. Price: one copy of weights and optimizer in host memory (sharded as they
are), renewed every `EVERY` steps. Source: PaLM's remedy (arXiv 2204.02311, 5.1), restart before the spike and skip the batches, done
without leaving the run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Protocol

from train.recipe import Recipe
from train.state import Record, State

__all__ = ["Diverged", "Guard", "Remembering", "spike"]

EVERY = 20
WINDOW = 64  # recent losses that a new one is compared with
FEWEST = 12  # below so many, only a loss that is no number is a spike: early losses fall too fast to tell
SMALLEST = 0.01  # deviation that is assumed at least, as a share of the median: a smooth curve has nearly none of its own
TRIES = 3  # roll-backs to one step before the run is given up
_TO_SIGMA = 1.4826  # median absolute deviation -> standard deviation of a normal distribution


class Diverged(ValueError):
    """A run whose losses nothing can come of: doing the same again would not help."""


class Remembering(Protocol):
    """What the guard needs of a stepper."""

    def remember(self) -> None:
        """Copy all that a step changes into host memory, over the copy before."""

    def go_back(self) -> None:
        """Return to what was remembered."""


def spike(recent: Sequence[float], loss: float, deviations: float) -> str | None:
    """Why `loss` is a spike after the `recent` ones, or None.

    >>> spike([3.0, 3.1, 2.9, 3.0] * 4, 3.3, 8.0) is None
    True
    >>> spike([3.0, 3.1, 2.9, 3.0] * 4, 5.0, 8.0)
    'loss 5.000, where 3.000 ± 0.074 was usual'
    """
    if not math.isfinite(loss):
        return f"loss {loss}"
    if len(recent) < FEWEST:
        return None
    middle = median(recent)
    deviation = max(_TO_SIGMA * median(abs(value - middle) for value in recent), SMALLEST * abs(middle))
    if loss <= middle + deviations * deviation:
        return None
    return f"loss {loss:.3f}, where {middle:.3f} ± {deviation:.3f} was usual"


class Guard:
    """Watches one run. Every worker has one; all see the same losses, so all decide alike without a word."""

    def __init__(self, stepper: Remembering, recipe: Recipe, state: State) -> None:
        self._stepper, self._deviations = stepper, recipe.guard
        self._good = state.step  # the step that the copy holds
        self._tries = 0
        if self._deviations:
            stepper.remember()

    def judge(self, state: State, loss: float) -> str | None:
        """Why the loss of the step after `state` is a spike, or None; call it before the step's update.

        Raises Diverged when the guard is off and the loss is no number: nothing can come of such a run.
        """
        if not self._deviations:
            if not math.isfinite(loss):
                raise Diverged(f"loss {loss} at step {state.step + 1}; lower the learning rate, or set guard to undo such steps")
            return None
        reason = spike([record.loss for record in state.records[-WINDOW:]], loss, self._deviations)
        if reason is None and state.step >= self._good + EVERY:
            self._stepper.remember()
            self._good, self._tries = state.step, 0
        return reason

    def undo(self, state: State, spiked: Record, reason: str) -> State:
        """Go back to the last good step, past the data since; `state` is the one before the step that spiked.

        Raises Diverged when that has not helped several times.
        """
        self._tries += 1
        if self._tries > TRIES:
            raise Diverged(
                f"{reason} at step {spiked.step}, after going back to step {self._good} {TRIES} times; "
                "lower the learning rate, lengthen the warm-up or look at the data of the skipped windows"
            )
        self._stepper.go_back()
        return state.without(spiked, self._good, reason)
