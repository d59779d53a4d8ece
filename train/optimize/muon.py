"""Muon: momentum whose matrices are made orthogonal before they are applied.

Promise: one step of `Muon` is, for each matrix W [..., A, B] with gradient G: M ← μM + (1−μ)G, O ← orthogonal(G + μ(M − G)),
W ← (1 − ηλ)W − η · 0.2 √max(A, B) · O; with that scale an update is about as large as AdamW's, so its learning rates and decay serve.
The workers of a group share the work: each makes some of the matrices' updates and sends the rest of them the result, bit for bit.
Price: 5 Newton-Schulz rounds of three matrix products a step; momentum on every worker. Expert weights [E, A, B] are E matrices.
Source: Jordan's Muon (kellerjordan.github.io/posts/muon); the scale is Moonlight's (arXiv 2502.16982).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed
from torch import Tensor

__all__ = ["Muon", "orthogonal"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5
_MATCHED_RMS = 0.2  # of an AdamW update


def orthogonal(matrix: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A matrix [..., A, B] with the same singular vectors and all singular values near 1 (0.7 to 1.2), computed in `dtype`.

    >>> values = torch.linalg.svdvals(orthogonal(torch.tensor([[3.0, 0.0], [1.0, 0.5]])))
    >>> bool(((values > 0.6) & (values < 1.3)).all())
    True
    """
    a, b, c = _COEFFICIENTS
    x = matrix / matrix.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    x = x.to(dtype or matrix.dtype)
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Muon over matrices; embeddings, output layers and vectors belong to another optimizer."""

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._rank, self._world_size = rank, world_size
        for group in self.param_groups:
            for weight in group["params"]:
                assert min(weight.shape[-2:]) > 1, f"not a matrix: {tuple(weight.shape)}"
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient; the gradients must be equal on all workers."""
        sent = []
        for group in self.param_groups:
            for number, weight in enumerate(group["params"]):
                if weight.grad is None:
                    continue
                owner = number % self._world_size
                momentum = self.state[weight]["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
                if owner == self._rank:
                    _update(weight, weight.grad.lerp(momentum, group["momentum"]), group["lr"], group["weight_decay"])
                if self._world_size > 1:
                    sent.append(torch.distributed.broadcast(weight, owner, async_op=True))
        for message in sent:
            message.wait()


def _update(weight: Tensor, direction: Tensor, rate: float, decay: float) -> None:
    scale = _MATCHED_RMS * math.sqrt(max(weight.shape[-2:]))
    # half the time on matrix units; without them bfloat16 products are slower than float32's
    unit = orthogonal(direction, torch.bfloat16 if weight.is_cuda else None)
    weight.mul_(1 - rate * decay).sub_(unit, alpha=rate * scale)
