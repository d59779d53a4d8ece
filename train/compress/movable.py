"""What may still move in a compressed model, and what becomes of it: zeros stay zeros, integers stay the integers they are.

Promise: `movable` gives a model that computes what the variants do, and of which only what was asked for requires gradients; after
any training `settled` gives variants of the same options and sizes, whose values are those that will be read back. Price: a matrix is
made from its parts on every use (a product with its mask, integers times their scales).
What moves: "norms": vectors (norms, biases) and the scales of integer matrices, which are all that can change of these
without another rounding (PEQA, arXiv 2305.14152); "lora": these, and a low-rank update of every kept or sparse linear layer, under the
mask of the sparse (LoRA, 2106.09685); "full": every weight there is, behind the mask where there is one, and thin factors. An
embedding or an output layer that was compressed stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from train.compress.calibrate import matrices
from train.compress.candidates import Variant, integers_of, mask_of
from train.compress.gptq import widened

__all__ = ["WAYS", "Way", "movable", "settled"]

Way = Literal["norms", "lora", "full"]
WAYS: tuple[Way, ...] = ("norms", "lora", "full")

_RANK = 16
_GAIN = 2.0
"""The low-rank update is scaled by this (LoRA's alpha over its rank)."""


class _Masked(nn.Module):
    """A weight whose zeros are zeros."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


class _Updated(nn.Module):
    """A weight that lies still, and two thin factors that move it."""

    base: Tensor
    mask: Tensor | None

    def __init__(self, base: Tensor, mask: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("base", base)
        self.register_buffer("mask", mask)

    def forward(self, down: Tensor, up: Tensor) -> Tensor:
        update = up @ down * _GAIN
        return self.base + (update if self.mask is None else update * self.mask)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = weight.shape
        rank = min(_RANK, rows, columns)
        down = torch.randn(rank, columns, device=weight.device) * columns**-0.5
        return down, torch.zeros(rows, rank, device=weight.device)


class _Scaled(nn.Module):
    """Integers that lie still, and what their scales are multiplied by: a learning rate is then relative, as it is for a norm."""

    q: Tensor
    start: Tensor

    def __init__(self, q: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("q", q)
        self.register_buffer("start", scale.float())

    def forward(self, gain: Tensor) -> Tensor:
        return widened(self.q, self.scale(gain))

    def right_inverse(self, weight: Tensor) -> Tensor:
        return torch.ones_like(self.start)

    def scale(self, gain: Tensor) -> Tensor:
        return self.start * gain


class _Product(nn.Module):
    """Two thin factors."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        super().__init__()
        self._start = left.float(), right.float()

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return self._start[0].clone(), self._start[1].clone()


def movable(model: Any, variants: Mapping[str, Variant], way: Way, *, seed: int = 0) -> Any:
    """`model` (float32), changed in place: its matrices as their `variants` are, ready to be trained as `way` says."""
    torch.manual_seed(seed)
    roles = {matrix.name: matrix.role for matrix in matrices(model)}
    for parameter in model.parameters():
        parameter.requires_grad_(way == "full" or parameter.ndim < 2)
    for name, role in roles.items():
        layer, variant = model.get_submodule(name), variants.get(name)
        if variant is not None:
            layer.weight.data = variant.dense.to(layer.weight, copy=True)
            if role != "linear":
                layer.weight.requires_grad_(False)
                continue
        elif way != "lora" or role != "linear":
            continue
        if (part := _part(layer.weight.detach(), variant, way)) is not None:
            parametrize.register_parametrization(layer, "weight", part, unsafe=True)  # another shape than the weight's is its purpose
            moves = way != "norms" or isinstance(part, _Scaled)
            for parameter in layer.parametrizations.weight.parameters(recurse=False):
                parameter.requires_grad_(moves)
    return model


def _part(weight: Tensor, variant: Variant | None, way: Way) -> nn.Module | None:
    """What makes the weight of a linear layer from what moves of it; None: it is a plain parameter."""
    if variant is None or variant.option.kind == "keep":
        return _Updated(weight, None) if way == "lora" else None
    if variant.option.kind == "int":
        return _Scaled(integers_of(variant), variant.tensors["weight_scale"])
    if variant.option.kind == "lowrank":
        return _Product(variant.tensors["weight"], variant.tensors["weight_right"])
    mask = mask_of(variant)
    return _Updated(weight, mask) if way == "lora" else _Masked(mask)


def settled(model: Any, variants: Mapping[str, Variant]) -> tuple[dict[str, Variant], dict[str, Tensor]]:
    """(the variants as they are after training, and every other parameter that moved: name -> float32, as in the plain model)."""
    moved: dict[str, Variant] = dict(variants)
    plain: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ".parametrizations." not in name:
            plain[name] = parameter.detach().float().clone()
    for name in [each.name for each in matrices(model) if hasattr(model.get_submodule(each.name), "parametrizations")]:
        layer = model.get_submodule(name)
        if name in variants:
            moved[name] = _restored(variants[name], layer)
        else:
            plain[f"{name}.weight"] = layer.weight.detach().float()
    return moved, plain


def _restored(variant: Variant, layer: Any) -> Variant:
    """`variant` with the numbers that its layer has now, in the type that they are stored in."""
    tensors, held = dict(variant.tensors), layer.parametrizations.weight
    if variant.option.kind == "int":
        tensors["weight_scale"] = held[0].scale(held.original.detach()).to(tensors["weight_scale"])
    elif variant.option.kind == "lowrank":
        tensors = {
            key: factor.detach().to(tensors["weight"]) for key, factor in (("weight", held.original0), ("weight_right", held.original1))
        }
    else:
        mask = mask_of(variant)
        tensors["weight"] = layer.weight.detach().to(tensors["weight"])[mask]
    return Variant(variant.option, tensors)
