"""A model -> what a stepper trains: its objective, with what the recipe asks of it.

Promise: the same for every stepper. Price: none. Source: gradient checkpointing is Chen et al.'s (arXiv 1604.06174), by transformers.
"""

from __future__ import annotations

from torch import nn

from train.loss import Objective, objective_of
from train.parallel.sequence import SequenceLoss
from train.recipe import Recipe

__all__ = ["prepared"]


def prepared(model: nn.Module, recipe: Recipe) -> Objective:
    """The objective of `model`: next-token prediction, or its own.

    Raises ValueError where the recipe asks for what the model cannot do.
    """
    objective = _objective(model, recipe)
    objective.z_loss = recipe.z_loss
    if recipe.gradient_checkpointing:
        inner = objective.model
        if not getattr(inner, "supports_gradient_checkpointing", False):
            raise ValueError(f"gradient_checkpointing: {type(inner).__name__} does not support it; switch it off")
        inner.activation_checkpointing_enable({"use_reentrant": False})
    return objective


def _objective(model: nn.Module, recipe: Recipe) -> Objective:
    if recipe.sequence == 1:
        return objective_of(model)
    if isinstance(model, Objective) or hasattr(model, "get_base_model"):
        raise ValueError("sequence: is for whole models and next-token prediction; set it to 1 to tune with adapters or preferences")
    return SequenceLoss(model, recipe.sequence)
