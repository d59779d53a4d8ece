"""Bottleneck adapters: a narrow two-layer network after attention and after the MLP of each layer, before the residual sum.

Promise: y ← y + up(gelu(down(y))) with `up` at zero, so that before training nothing changes; nothing else is trained. Price: two
thin products per adapted layer, at serving time too, for a network between two matrices cannot be folded into either.
Source: Houlsby et al. (arXiv 1902.00751), whose adapters also stand after both sublayers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["Bottleneck", "bypassed", "with_bottlenecks"]

_RESIDUAL_OUTPUTS = ("o_proj", "down_proj", "out_proj", "dense_4h_to_h", "dense", "c_proj", "fc2", "w2", "wo")
"""What architectures call the linear layers that write to the residual stream."""


class Bottleneck(nn.Module):
    """A frozen linear layer with an adapter on its output."""

    def __init__(self, base: nn.Linear, width: int) -> None:
        super().__init__()
        self.base = base
        size, like = base.out_features, base.weight
        self.down = nn.Linear(size, width, device=like.device, dtype=like.dtype)
        self.up = nn.Linear(width, size, device=like.device, dtype=like.dtype)
        nn.init.normal_(self.down.weight, std=1.0 / math.sqrt(size))
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N]"""
        y = self.base(x)
        return y + self.up(nn.functional.gelu(self.down(y)))


def bypassed(model: nn.Module) -> list[str]:
    """Names of the linear layers whose weight the layer above hands to a fused kernel of its own instead of calling them: the output
    projection of Mamba-2 in training. What is put beside such a layer would not be computed there."""
    return [f"{name}.out_proj" for name, module in model.named_modules() if hasattr(module, "A_log") and hasattr(module, "D")]


def with_bottlenecks(model: PreTrainedModel, width: int, targets: Sequence[str] = ()) -> PreTrainedModel:
    """`model` itself, frozen, with an adapter of `width` after each linear layer whose name ends in one of `targets`.

    Raises ValueError when no layer is called so.
    """
    wanted = set(targets or _RESIDUAL_OUTPUTS)
    left_out = {*bypassed(model)}
    head = model.get_output_embeddings()
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[-1] in wanted and module is not head and name not in left_out
    ]
    if not found:
        named = " ".join(sorted(wanted))
        raise ValueError(f"targets: {named}: the model has no linear layer of such a name that an adapter can follow; name others")
    model.requires_grad_(False)
    for name, module in found:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, Bottleneck(module, width))
    return model
