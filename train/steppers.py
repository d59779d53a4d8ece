"""Which stepper carries a recipe out.

Promise: plain torch where nothing is to be sharded (one worker, or ZeRO stage 0), DeepSpeed where something is; both write the
same checkpoints. Price: DeepSpeed is imported only where it is needed.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from train.plain import PlainStepper
from train.recipe import Recipe
from train.sharded import ShardedStepper

__all__ = ["make_stepper"]


def make_stepper(model: PreTrainedModel, recipe: Recipe, device: torch.device | None = None) -> PlainStepper | ShardedStepper:
    """A stepper for this worker of the process group (or for this process alone)."""
    if recipe.zero_stage == 0 or (recipe.num_workers == 1 and recipe.offload == "none"):
        return PlainStepper(model, recipe, device)
    return ShardedStepper(model, recipe, device)
