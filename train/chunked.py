"""A sum over positions of what their logits say, without the logits of all of them at once.

Promise: the sum and its gradient in the hidden states and in the output layer's matrix, equal to the plain computation up to rounding;
float32, float64 for a float64 model. Price: logits of one chunk of positions at a time; the output layer's gradients are made in
the forward pass, chunk by chunk, so its matrix products are three and not four.
Source: the idea of Liger Kernel's fused linear cross-entropy (arXiv 2410.10989).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Judge", "chunked_sum", "wide"]

Judge = Callable[[slice, Tensor, bool], tuple[Tensor, Tensor | None]]
"""(some of the positions, their logits [n, V], whether a gradient is wanted) -> (values [n], their sum's gradient by the logits [n, V]).

The logits may be overwritten; the gradient may be None where none is wanted.
"""


def chunked_sum(hidden_NH: Tensor, weight_VH: Tensor, size: int, judge: Judge) -> Tensor:
    """Σ of `judge`'s values of hidden · weightᵀ, `size` positions at a time; differentiable in hidden and weight."""
    return _ChunkedSum.apply(hidden_NH, weight_VH.to(hidden_NH.dtype), size, judge)  # type: ignore[no-any-return,no-untyped-call]


def wide(tensor: Tensor) -> Tensor:
    """In float32, or in float64 if it is that already."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class _ChunkedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, size: int, judge: Judge) -> Tensor:
        exact = torch.float64 if hidden_NH.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=exact, device=hidden_NH.device)
        grad_hidden = torch.zeros_like(hidden_NH) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros(weight_VH.shape, dtype=exact, device=weight_VH.device) if ctx.needs_input_grad[1] else None
        wanted = grad_hidden is not None or grad_weight is not None
        for start in range(0, len(hidden_NH), size):
            part = slice(start, start + size)
            values, error = judge(part, wide(hidden_NH[part] @ weight_VH.T), wanted)
            total += values.sum()
            if not wanted:
                continue
            assert error is not None
            narrow = error.to(hidden_NH.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = narrow @ weight_VH
            if grad_weight is not None:
                grad_weight += narrow.T @ hidden_NH[part]
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight_VH.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # type: ignore[override]
        grad_hidden, grad_weight = ctx.saved_tensors
        hidden = None if grad_hidden is None else grad_hidden * scale.to(grad_hidden.dtype)
        weight = None if grad_weight is None else grad_weight * scale.to(grad_weight.dtype)
        return hidden, weight, None, None
