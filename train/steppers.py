"""Which stepper carries a recipe out.

Promise: plain torch where nothing is to be sharded (one worker, or ZeRO stage 0), DeepSpeed where something is; all write the
same checkpoints. Price: DeepSpeed is imported only where it is needed.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from train.parallel.pipeline import PipelineSplit
from train.parallel.split import SplitStepper
from train.parallel.tensor import TensorSplit
from train.plain import PlainStepper
from train.recipe import Recipe
from train.sharded import ShardedStepper, quiet_deepspeed

__all__ = ["make_stepper"]


def make_stepper(
    model: PreTrainedModel, recipe: Recipe, device: torch.device | None = None
) -> PlainStepper | ShardedStepper | SplitStepper:
    """A stepper for this worker of the process group (or for this process alone)."""
    if max(recipe.tensor, recipe.pipeline) > 1:
        return _split(model, recipe, device or torch.device("cpu"))
    if recipe.zero_stage == 0 or (recipe.num_workers == 1 and recipe.offload == "none"):
        return PlainStepper(model, recipe, device)
    return ShardedStepper(model, recipe, device)


def _split(model: PreTrainedModel, recipe: Recipe, device: torch.device) -> SplitStepper:
    split = TensorSplit if recipe.tensor > 1 else PipelineSplit
    return SplitStepper(split(model, recipe, quiet_deepspeed(device)), recipe, device)
