"""Matrix products with a model's weights: dense, int8 or int4, on our own kernels or torch's, and several stacked into one.

Promise: `layer(x)` is x @ weight.T + bias for x [T, K]; projections that read the same input are stored as one matrix (rows
concatenated), so a layer makes four products, not seven. bf16 models on a CPU with AVX-512 run on `native/linear.py`, where a token's
result is bitwise the same in any company; what follows is for everything else. Prices of torch's kernels, measured on 2 cores with
AVX-512 bf16, 8192x2048, ms for 1 / 8 tokens: bf16 linear 1.33 / 2.7, the same in oneDNN's blocked layout 0.70 / 1.6; float32 1.16 / 3.6,
blocked 1.26 / 1.7. Hence `Dense` packs bf16 always and float32 where the matrix is large. Quantised weights are never held widened: what
has no kernel is widened slab by slab, for the one product that needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear

from serve.engine.native.linear import NativeLinear, fits
from serve.engine.quantised import Scheme

__all__ = ["Dense", "Grouped", "Int8", "Linear", "Rows", "Side", "Stored", "fuse", "values", "widened"]

Linear = Callable[[Tensor], Tensor]
INT8_TOKENS = 32
"""Most tokens for which torch's int8 kernel beats a dense product with the weights widened on the fly (12 of 20 ms at 16 tokens, 24 of
29 at 32, 49 of 49 at 64, for 8192x2048 on one busy core)."""
_INT8_COLUMNS, _INT8_ALIGNMENT = 32, 64
"""torch's kernel reads whole vectors from aligned addresses: other widths are summed wrongly or end the process, and nothing is checked."""
_INT4_ROWS, _INT4_GROUPS = 16, (32, 64, 128, 256)
_SLAB = 1 << 20  # weights widened at once: what stays in a core's cache; the whole matrix at once takes twice as long
_PACK_FLOAT32_FROM = 4_000_000
_TOKENS_HINT = 8  # the number of rows the packed layout is chosen for; any number works


@dataclass(frozen=True, slots=True)
class Stored:
    """A projection as its folder holds it."""

    weight: Tensor
    """[N, K] floats; quantised: uint8 [N, ceil(K * bits / 8)], each value plus the scheme's offset, lowest bits first."""
    bias: Tensor | None = None
    """[N]."""
    scheme: Scheme | None = None
    columns: int = 0
    """K of a quantised matrix."""
    scale: Tensor | None = None
    """[N, groups] of a quantised matrix."""


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
        self._slabs = self.rows.split(_slab_rows(rows.shape[1]))
        self._kernel = rows.device.type == "cpu" and scale.dtype == torch.bfloat16 and rows.shape[1] % _INT8_COLUMNS == 0

    def __call__(self, x: Tensor) -> Tensor:
        if not self._kernel or len(x) > INT8_TOKENS:
            return self.plain(x)
        return _biased(torch.ops.aten._weight_int8pack_mm(_aligned(x.contiguous()), self.rows, self.scale), self.bias)

    def plain(self, x: Tensor) -> Tensor:
        """The same product with the rows widened for it, a slab at a time: for many tokens, and for types without a kernel.

        int8 is exact in every type, so only the product itself rounds.
        """
        return _biased(torch.cat([linear(x, slab.to(x.dtype)) for slab in self._slabs], -1).mul_(self.scale), self.bias)


class Grouped:
    """Weight [N, K] in int4 or int8 with a scale for every `group` columns of a row: values * scale[:, column // group].

    `packed` is uint8 as in `Stored`. bf16 in int4 goes through torch's kernel where its sizes allow, all else slab by slab.
    """

    def __init__(self, packed: Tensor, scheme: Scheme, columns: int, scale: Tensor, bias: Tensor | None = None) -> None:
        self._scheme, self._columns, self.scale, self.bias = scheme, columns, scale.contiguous(), bias
        self._group = scheme.group or columns
        self.num_bytes = packed.numel()
        self._packed: Tensor | None = packed
        self._blocked: Tensor | None = None
        fitting = self._group in _INT4_GROUPS and columns % self._group == 0 and len(packed) % _INT4_ROWS == 0
        if scheme.bits == 4 and packed.device.type == "cpu" and scale.dtype == torch.bfloat16 and fitting:
            values = (_values_of(packed, scheme, columns) + scheme.offset).to(torch.int32)
            self._blocked, self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 2), None
            self._scales_zeros = torch.stack([self.scale, torch.zeros_like(self.scale)], -1).transpose(0, 1).contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        if self._blocked is None:
            return self.plain(x)
        product = torch.ops.aten._weight_int4pack_mm_for_cpu
        return _biased(product(_aligned(x.contiguous()), self._blocked, self._group, self._scales_zeros), self.bias)

    def plain(self, x: Tensor) -> Tensor:
        """The product with the rows widened for it, a slab at a time."""
        assert self._packed is not None
        size = _slab_rows(self._columns)
        products = [
            linear(x, self._widened(packed, scale.to(x.dtype)))
            for packed, scale in zip(self._packed.split(size), self.scale.split(size), strict=True)
        ]
        return _biased(torch.cat(products, -1), self.bias)

    def _widened(self, packed: Tensor, scale: Tensor) -> Tensor:
        values = _values_of(packed, self._scheme, self._columns).to(scale.dtype)
        return values.mul_(scale.repeat_interleave(self._group, 1)[:, : self._columns])


def _values_of(packed: Tensor, scheme: Scheme, columns: int) -> Tensor:
    """uint8 as in `Stored` to the values, int8 [N, K]."""
    if scheme.bits == 8:
        return (packed ^ 0x80).view(torch.int8)
    nibbles = torch.stack([packed & 15, packed >> 4], -1).flatten(1)[:, :columns]
    return nibbles.view(torch.int8) - scheme.offset


class Rows:
    """A matrix [N, K] whose rows are looked up, held as it is stored: `rows(tokens [T])` is [T, K] in `dtype`."""

    def __init__(self, stored: Stored, dtype: torch.dtype) -> None:
        self._stored, self._dtype = stored, dtype
        self.weight = stored.weight

    def __call__(self, tokens: Tensor) -> Tensor:
        stored = self._stored
        if stored.scale is None:
            return embedding(tokens, self.weight)
        return widened(Stored(self.weight[tokens], None, stored.scheme, stored.columns, stored.scale[tokens]), self._dtype)


def values(stored: Stored) -> Tensor:
    """The integers [N, K] of a quantised matrix, int8."""
    assert stored.scheme is not None
    return _values_of(stored.weight, stored.scheme, stored.columns)


def widened(stored: Stored, dtype: torch.dtype) -> Tensor:
    """The matrix [N, K] in `dtype`, each value rounded once."""
    if stored.scheme is None or stored.scale is None:
        return stored.weight.to(dtype)
    integers, wide = values(stored), torch.promote_types(dtype, torch.float32)
    product = integers.to(wide).view(len(integers), stored.scale.shape[1], -1) * stored.scale.to(wide)[:, :, None]
    return product.view(integers.shape).to(dtype)


def _slab_rows(columns: int) -> int:
    return max(64, _SLAB // columns)


def _aligned(tensor: Tensor) -> Tensor:
    """The same values where a kernel's vectors can be loaded: fresh tensors are, views into others may not be."""
    return tensor.clone() if tensor.data_ptr() % _INT8_ALIGNMENT else tensor


def _biased(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y.add_(bias)


class Side:
    """Projections of one input that could not be stacked (of different kinds), side by side."""

    def __init__(self, parts: Sequence[Linear]) -> None:
        self.parts = tuple(parts)
        self.num_bytes = sum(part.num_bytes for part in parts)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], dim=-1)


def fuse(parts: Sequence[Stored], *, native: bool = False) -> Linear:
    """One linear from several that read the same input; `native`: on our own kernels, for bf16 on the CPU (see native/library.py)."""
    kinds = {(part.scheme, part.columns) for part in parts}
    if len(kinds) > 1:
        return Side([fuse([part], native=native) for part in parts])
    scheme, columns = kinds.pop()
    bias = _bias(parts)
    scale = None if scheme is None else _rows([part.scale for part in parts if part.scale is not None])
    if native and fits(scheme):
        return NativeLinear([part.weight for part in parts], scheme, columns, scale, bias)
    weight = _rows([part.weight for part in parts])
    if scheme is None or scale is None:
        return Dense(weight, bias)
    if scheme == Scheme(8):
        return Int8(_values_of(weight, scheme, columns), scale, bias)
    return Grouped(weight, scheme, columns, scale, bias)


def _rows(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _bias(parts: Sequence[Stored]) -> Tensor | None:
    """The biases in a row, zeros where a part has none; None where none has."""
    given = [part.bias for part in parts if part.bias is not None]
    if not given:
        return None
    return _rows([given[0].new_zeros(len(part.weight)) if part.bias is None else part.bias for part in parts])
