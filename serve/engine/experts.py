"""Mixture of experts: each token goes through its own few MLPs.

Promise: a token's output depends on that token alone (its experts are added in ascending order, in float32). Price: the router, one
sort of T * per_token numbers, and two products per expert that some token chose: experts nobody chose cost nothing.
Papers: Sparsely-gated mixture of experts (arXiv 1701.06538), Mixtral (2401.04088); the shared expert: Qwen 1.5 MoE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from serve.engine.linear import Linear
from serve.engine.parts import Layer, Mlp
from serve.engine.shape import Experts, Shape
from serve.engine.weights import Weights

__all__ = ["Mixture", "grouped", "route"]


class _Feed(Protocol):
    def __call__(self, x: Tensor, adapters: Callable[[int, str, Tensor, Tensor], None] | None = None) -> Tensor: ...


class Mixture:
    """The MLP of a sparse layer: a router over experts, and perhaps one more that every token goes through."""

    def __init__(self, shape: Shape, weights: Weights, part: Layer, make: Callable[[Mlp], _Feed], shared: _Feed | None) -> None:
        assert shape.experts is not None
        assert part.router is not None
        self._rule = shape.experts
        self._router: Linear = weights.linear(part.router)
        self._experts = [make(expert) for expert in part.experts]
        self._shared = shared
        self._shared_gate: Linear | None = None if part.shared_gate is None else weights.linear(part.shared_gate)

    def __call__(self, x: Tensor, adapters: object = None) -> Tensor:
        """x [T, hidden] -> [T, hidden]. Adapters leave experts alone: there is no one product to add to."""
        chosen, shares = route(self._router(x), self._rule)
        sums = torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        for expert, slots in grouped(chosen):
            tokens = slots // self._rule.per_token
            share = shares.view(-1).index_select(0, slots).unsqueeze(1)
            sums.index_add_(0, tokens, self._experts[expert](x.index_select(0, tokens)) * share)
        out = sums.to(x.dtype)
        if self._shared is None:
            return out
        extra = self._shared(x)
        return out + (extra if self._shared_gate is None else self._shared_gate(x).sigmoid() * extra)


def route(logits: Tensor, rule: Experts) -> tuple[Tensor, Tensor]:
    """Router logits [T, experts] -> the chosen experts [T, k], and their shares [T, k] in float32 at least."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    shares, chosen = logits.softmax(-1, wide).topk(rule.per_token, -1)
    return chosen, shares / shares.sum(-1, keepdim=True) if rule.normalise else shares


def grouped(chosen: Tensor) -> list[tuple[int, Tensor]]:
    """Each expert that occurs in chosen [T, k], ascending, with its slots (token * k + rank), ascending.

    >>> [(expert, slots.tolist()) for expert, slots in grouped(torch.tensor([[7, 2], [0, 7]]))]
    [(0, [2]), (2, [1]), (7, [0, 3])]
    """
    experts, order = chosen.flatten().sort(stable=True)
    present, counts = experts.unique_consecutive(return_counts=True)
    return list(zip(present.tolist(), order.split(counts.tolist()), strict=True))
