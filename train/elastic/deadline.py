"""Save now, or one more step: what a worker group does when a machine under it has been given notice.

Promise: decided by figures of this run alone (how long its steps and its checkpoints take), as a pure function, with the reason in words;
without a figure for a checkpoint, or without a deadline, the answer is to save at once. Price: the safety factor: of the time left, what
two checkpoints and two steps take is not used for training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["RESERVE_S", "SAFETY", "Choice", "choose"]

SAFETY = 2.0
"""A step or a checkpoint may take this many times what it took at most: other machines upload at the same time."""
RESERVE_S = 1.0
"""For what comes after the commit: every process returns, and Ray hears of it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do before the next step."""

    save: bool
    """Save and leave, now; otherwise one more step."""
    reason: str


def choose(left_s: float, step_s: float, save_s: float | None) -> Choice:
    """What to do with `left_s` seconds to the deadline, when a step took at most `step_s` and a checkpoint, from the copy to the commit,
    at most `save_s` (None: there has been none).

    >>> choose(10.0, step_s=0.5, save_s=1.0)
    Choice(save=False, reason='10.0 s left, a checkpoint takes 1.0 s, a step 0.50 s: one more step')
    >>> choose(3.9, step_s=0.5, save_s=1.0).save
    True
    """
    if math.isinf(left_s):
        return Choice(True, "no deadline is known: save now")
    if save_s is None:
        return Choice(True, f"{left_s:.1f} s left, no checkpoint has been measured: save now")
    told = f"{left_s:.1f} s left, a checkpoint takes {save_s:.1f} s, a step {step_s:.2f} s"
    if left_s < SAFETY * (step_s + save_s) + RESERVE_S:
        return Choice(True, f"{told}: save now")
    return Choice(False, f"{told}: one more step")
