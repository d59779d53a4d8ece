"""Mixture of experts: each token goes through its own few MLPs.

Promise: a token's output depends on that token alone (its experts are added from the likeliest on, in float32). Price: the router, one
sort of T * per_token numbers, and two products per expert that some token chose: experts nobody chose cost nothing.
Papers: Sparsely-gated mixture of experts (arXiv 1701.06538), Mixtral (2401.04088); the shared expert: Qwen 1.5 MoE.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
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
        order, groups = grouped(chosen)
        rows = x.index_select(0, order // self._rule.per_token)
        done = [self._experts[expert](part) for (expert, _), part in zip(groups, rows.split([n for _, n in groups]), strict=True)]
        slots = torch.cat(done).index_select(0, order.argsort()).view(*chosen.shape, -1)  # [T, k, hidden]
        out = reduce(torch.add, (slots * shares.unsqueeze(-1)).unbind(1)).to(x.dtype)
        if self._shared is None:
            return out
        extra = self._shared(x)
        return out + (extra if self._shared_gate is None else self._shared_gate(x).sigmoid() * extra)


def route(logits: Tensor, rule: Experts) -> tuple[Tensor, Tensor]:
    """Router logits [T, experts] -> the chosen experts [T, k], and their shares [T, k] in float32 at least."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    shares, chosen = logits.softmax(-1, wide).topk(rule.per_token, -1)
    return chosen, shares / shares.sum(-1, keepdim=True) if rule.normalise else shares


def grouped(chosen: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
    """The slots (token * k + rank) of chosen [T, k] sorted by expert, and each expert that occurs with its number of slots.

    >>> order, groups = grouped(torch.tensor([[7, 2], [0, 7]]))
    >>> order.tolist(), groups
    ([2, 1, 0, 3], [(0, 1), (2, 1), (7, 2)])
    """
    experts, order = chosen.flatten().sort(stable=True)
    present, counts = experts.unique_consecutive(return_counts=True)
    return order, list(zip(present.tolist(), counts.tolist(), strict=True))
