"""A low-rank update of the token embedding and of the output layer, which are one matrix where the model ties them.

Promise: before training nothing changes; tied matrices stay tied, through one update, which learns from both their uses; `without_updates`
folds it into the weights and leaves a plain model. Price: each pass makes the updated matrix, and the way back its gradient, as tuning it
whole would; what is trained and remembered is rank · (vocabulary + width). A server cannot apply it row by row, so it is for merging.
Source: LoRA's product (arXiv 2106.09685), here as a parametrization of the weight; LongLoRA (2309.12307) for embeddings being what LoRA
lacks where text differs most from what the model has read.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

__all__ = ["LowRank", "updates_of", "with_updates", "without_updates"]


class LowRank(nn.Module):
    """W ↦ W + scale · B A; B begins at zero."""

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.a = nn.Parameter(torch.empty(rank, weight.shape[1], dtype=weight.dtype, device=weight.device))
        self.b = nn.Parameter(torch.zeros(weight.shape[0], rank, dtype=weight.dtype, device=weight.device))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))  # as peft draws LoRA's

    def forward(self, weight: Tensor) -> Tensor:
        """[V, H] -> [V, H]"""
        return torch.addmm(weight, self.b, self.a, alpha=self.scale)


def with_updates(model: PreTrainedModel, rank: int, scale: float) -> PreTrainedModel:
    """`model` itself, its embedding and output layer (where they are plain ones) with an update each, or one if they are tied."""
    updates: dict[int, LowRank] = {}
    for module in _ends(model):
        weight = module.weight
        update = updates.setdefault(id(weight), LowRank(weight, rank, scale))
        weight.requires_grad_(False)
        parametrize.register_parametrization(module, "weight", update)
    return model


def without_updates(model: PreTrainedModel) -> PreTrainedModel:
    """`model` itself, the updates in its weights."""
    folded: set[int] = set()
    for module in _ends(model):
        if parametrize.is_parametrized(module, "weight"):
            update = id(module.parametrizations.weight[0])
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=update not in folded)  # in place: once for the tied
            folded.add(update)
    return model


def updates_of(model: PreTrainedModel) -> dict[str, tuple[type[nn.Module], LowRank]]:
    """Module's name -> what it is (nn.Embedding or nn.Linear) and its update; the same update twice where they are tied."""
    names = {id(module): name for name, module in model.named_modules()}
    return {
        names[id(module)]: (nn.Embedding if isinstance(module, nn.Embedding) else nn.Linear, module.parametrizations.weight[0])
        for module in _ends(model)
        if parametrize.is_parametrized(module, "weight")
    }


def _ends(model: PreTrainedModel) -> list[nn.Module]:
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return [module for module in ends if isinstance(module, nn.Embedding | nn.Linear)]
