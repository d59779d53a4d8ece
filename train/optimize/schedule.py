"""The learning rate of each step: warm-up, then constant, cosine, or stable and then falling (WSD).

Promise: a pure function of the recipe and the step, so a run that was interrupted goes on at the right rate; always above 0.
Source: cosine as in Loshchilov & Hutter (arXiv 1608.03983); WSD as in MiniCPM (arXiv 2404.06395), with the fall by one minus a square
root that Hägele et al. (arXiv 2405.18392) found best: a run can be prolonged from any step before the fall.
"""

from __future__ import annotations

import math

from train.recipe import Recipe

__all__ = ["learning_rate_at"]

_FLOOR = 0.1  # of the peak, where cosine ends


def learning_rate_at(recipe: Recipe, step: int) -> float:
    """The rate of 0-based `step`.

    >>> recipe = Recipe(steps=11, global_batch=2, micro_batch=1, sequence_length=8, learning_rate=1.0, warmup_steps=2)
    >>> [round(learning_rate_at(recipe, step), 2) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.55, 0.1]
    """
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    if recipe.schedule == "constant":
        return recipe.learning_rate
    if recipe.schedule == "wsd":
        falling = max(1, round(recipe.steps * recipe.decay_share))
        done = max(0, step + 1 - (recipe.steps - falling))
        return recipe.learning_rate * (1 - math.sqrt(done / (falling + 1)))
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - 1 - recipe.warmup_steps)
    return recipe.learning_rate * (_FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
