"""Matrix products with a model's weights: dense, int8, and several stacked into one.

Promise: `layer(x)` is x @ weight.T + bias for x [T, K]; projections that read the same input are stored as one matrix (rows
concatenated), so a layer makes four products, not seven. Prices, measured on 2 cores with AVX-512 bf16, 8192x2048, ms for 1 / 8
tokens: torch's bf16 linear 1.33 / 2.7, the same in oneDNN's blocked layout 0.70 / 1.6; float32 1.16 / 3.6, blocked 1.26 / 1.7.
Hence `Dense` packs bf16 always and float32 where the matrix is large. int8 weights go through torch's weight-only kernel up to
`INT8_TOKENS` tokens, and beyond are widened slab by slab for the one product that needs them (never the whole model).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

__all__ = ["Dense", "Int8", "Linear", "Side", "fuse"]

Linear = Callable[[Tensor], Tensor]
INT8_TOKENS = 32
"""Most tokens for which the int8 kernel beats a dense product with the weights widened on the fly (12 of 20 ms at 16 tokens, 24 of
29 at 32, 49 of 49 at 64, for 8192x2048 on one busy core)."""
_INT8_COLUMNS, _INT8_ALIGNMENT = 32, 64
"""The kernel reads whole vectors from aligned addresses: other widths are summed wrongly or end the process, and nothing is checked."""
_SLAB = 1 << 20  # weights widened at once: what stays in a core's cache; the whole matrix at once takes twice as long
_PACK_FLOAT32_FROM = 4_000_000
_TOKENS_HINT = 8  # the number of rows the packed layout is chosen for; any number works


class Dense:
    """Weight [N, K], bias [N] or None."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias
        self.num_bytes = weight.numel() * weight.element_size()
        self._packed = _pack(weight)
        if self._packed is not None:
            self.weight = None
            self._product = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed is None:
            return linear(x, self.weight, self.bias)
        return self._product(x, self._packed, self.bias, "none", [], "")


def _pack(weight: Tensor) -> Tensor | None:
    """The weight in oneDNN's blocked layout, where that is faster and this machine has it."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    half = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    large = weight.dtype == torch.float32 and weight.numel() >= _PACK_FLOAT32_FROM
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _TOKENS_HINT) if half or large else None


class Int8:
    """Weight [N, K] in int8 with one scale per row: weight[n] = rows[n] * scale[n] (symmetric, per channel)."""

    def __init__(self, rows: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        self.rows, self.scale, self.bias = _aligned(rows.contiguous()), scale.flatten().contiguous(), bias
        self.num_bytes = rows.numel()
        self._slabs = self.rows.split(max(64, _SLAB // rows.shape[1]))
        self._kernel = rows.device.type == "cpu" and scale.dtype == torch.bfloat16 and rows.shape[1] % _INT8_COLUMNS == 0

    def __call__(self, x: Tensor) -> Tensor:
        if not self._kernel or len(x) > INT8_TOKENS:
            return self.plain(x)
        y = torch.ops.aten._weight_int8pack_mm(_aligned(x.contiguous()), self.rows, self.scale)
        return y if self.bias is None else y.add_(self.bias)

    def plain(self, x: Tensor) -> Tensor:
        """The same product with the rows widened for it, a slab at a time: for many tokens, and for types without a kernel.

        int8 is exact in every type, so only the product itself rounds.
        """
        y = torch.cat([linear(x, slab.to(x.dtype)) for slab in self._slabs], -1).mul_(self.scale)
        return y if self.bias is None else y.add_(self.bias)


def _aligned(tensor: Tensor) -> Tensor:
    """The same values where a kernel's vectors can be loaded: fresh tensors are, views into others may not be."""
    return tensor.clone() if tensor.data_ptr() % _INT8_ALIGNMENT else tensor


class Side:
    """Projections of one input that could not be stacked (of different kinds), side by side."""

    def __init__(self, parts: Sequence[Linear]) -> None:
        self.parts = tuple(parts)
        self.num_bytes = sum(part.num_bytes for part in parts)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], dim=-1)


def fuse(parts: Sequence[tuple[Tensor, Tensor | None, Tensor | None]]) -> Linear:
    """One linear from several (weight, scale, bias) that read the same input; scale is None for dense weights."""
    quantised = {scale is not None for _, scale, _ in parts}
    if len(quantised) > 1:
        return Side([fuse([part]) for part in parts])
    weight = _rows([weight for weight, _, _ in parts])
    bias = _bias(parts, weight)
    if not quantised.pop():
        return Dense(weight, bias)
    return Int8(weight, _rows([scale.flatten() for _, scale, _ in parts]), bias)


def _rows(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _bias(parts: Sequence[tuple[Tensor, Tensor | None, Tensor | None]], weight: Tensor) -> Tensor | None:
    """The biases in a row, zeros where a part has none; None where none has."""
    given = [bias for _, _, bias in parts if bias is not None]
    if not given:
        return None
    return torch.cat([given[0].new_zeros(len(weight)) if bias is None else bias for weight, _, bias in parts])
