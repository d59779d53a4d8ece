"""Training with serving in mind: for the loss that a budget buys, the size that costs least over its life.

Promise: the same predicted loss as the plan for training alone, for no more arithmetic over training and serving together; training
itself then takes more than the budget, and by how much is said. Price: some hundred evaluations of the law. Source: Sardana et al.
2023, "Beyond Chinchilla-Optimal": minimise 3·F·D_train + F·D_serve over N, with F the FLOPs of a token's way forward and
L(N, D_train) fixed.
"""

from __future__ import annotations

from collections.abc import Sequence

from train.plan.budget import MAX_EPOCHS, Candidate, trained_on
from train.plan.machine import Machine
from train.plan.outlook import Data, Outlook, tokens_for
from train.plan.price import Market
from train.plan.shapes import ModelShape

__all__ = ["for_serving"]


def for_serving(
    optimal: Candidate,
    shapes: Sequence[ModelShape],
    serve_tokens: float,
    data: Data,
    machine: Machine,
    *,
    outlook: Outlook,
    market: Market,
) -> Candidate:
    """Of all sizes that reach `optimal`'s loss, the one with the least arithmetic in training and in serving `serve_tokens`."""
    best = optimal
    for shape in shapes:
        if shape.num_parameters >= optimal.shape.num_parameters:
            break
        tokens = tokens_for(optimal.loss.value, shape, data, outlook, most=MAX_EPOCHS * data.num_tokens)
        made = tokens and trained_on(tokens, shape, data, machine, optimal.recipe.seed, outlook=outlook, market=market)
        if made and made.lifetime_flops(serve_tokens) < best.lifetime_flops(serve_tokens):
            best = made
    return best
