"""Which optimizer moves which parameter, and with which decay.

Promise: AdamW decays matrices and spares vectors (norms, biases); Muon, where asked for, takes the hidden matrices, and leaves embeddings,
the output layer, convolutions and vectors to AdamW. All optimizer state exists from the start. Price: none.
Source: GPT-3's and Llama's decay groups; Jordan's division of labour for Muon.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from train.optimize.muon import Muon
from train.recipe import Recipe
from train.zero import ADAM_BETAS

__all__ = ["hidden_matrices", "make_optimizers", "parameter_groups"]


def parameter_groups(model: nn.Module, weight_decay: float, without: frozenset[int] = frozenset()) -> list[dict[str, Any]]:
    """Trainable parameters, matrices with weight decay and vectors (norms, biases) without; not those whose id is in `without`."""
    trainable = [p for p in model.parameters() if p.requires_grad and id(p) not in without]
    groups = [([p for p in trainable if p.ndim >= 2], weight_decay), ([p for p in trainable if p.ndim < 2], 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """Trainable [A, B] and [E, A, B] parameters but for those of embeddings and of the output layer."""
    outer = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    for module in model.modules():
        head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
        outer |= set() if head is None else {id(p) for p in head.parameters()}
    return [p for p in model.parameters() if p.requires_grad and id(p) not in outer and p.ndim in (2, 3) and min(p.shape[-2:]) > 1]


def make_optimizers(model: nn.Module, recipe: Recipe, rank: int = 0, world_size: int = 1) -> list[torch.optim.Optimizer]:
    """The recipe's optimizers over the whole trainable parameters of `model`; their learning rate is set step by step."""
    matrices = hidden_matrices(model) if recipe.optimizer == "muon" else []
    found: list[torch.optim.Optimizer] = []
    if groups := parameter_groups(model, recipe.weight_decay, frozenset(map(id, matrices))):
        found.append(_with_state(torch.optim.AdamW(groups, lr=0.0, betas=ADAM_BETAS, eps=1e-8, fused=True)))
    if matrices:
        found.append(Muon(matrices, lr=0.0, weight_decay=recipe.weight_decay, rank=rank, world_size=world_size))
    return found


def _with_state(adam: torch.optim.AdamW) -> torch.optim.AdamW:
    """With the state that its first step would make, so that a run can go back to where it began."""
    for group in adam.param_groups:
        for p in group["params"]:
            zeros = [torch.zeros_like(p, memory_format=torch.preserve_format) for _ in range(2)]
            adam.state[p] = {"step": torch.zeros((), device=p.device), "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}
    return adam
