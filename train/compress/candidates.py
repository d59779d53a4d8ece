"""What a matrix becomes under an option: its values as they will be read back, and the tensors that are stored.

Promise: `Variant.dense` is to the bit what a reader of the stored tensors computes in float32, since it is made of them alone, whenever
it is asked for; `Variant.bytes` equals `options.stored_bytes`, and a variant takes no more memory. Price: see gptq.py, prune.py,
lowrank.py; `dense` of integers some nanoseconds per value.
How things are stored: integers as compressed-tensors' `pack-quantized` (`weight_packed`, `weight_scale`, `weight_shape`). Sparse ones
as `weight` [values kept], `weight_bitmask` [N, ceil(K / 8)] and `weight_shape`, low rank as `weight` [N, rank] and `weight_right`
[rank, K]: no library still reads compressed-tensors' own sparse formats (gone since 0.15), and a `weight` of another size is
refused where a missing one would be drawn at random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from serve.engine.layouts import scattered, unpacked
from serve.engine.linear import Stored, values
from serve.engine.quantised import Scheme
from train.compress import options
from train.compress.calibrate import Moments
from train.compress.gptq import quantised, widened
from train.compress.lowrank import factors
from train.compress.options import Option
from train.compress.prune import pruned

__all__ = ["Variant", "degraded", "integers_of", "mask_of"]


@dataclass(frozen=True, eq=False, slots=True)
class Variant:
    """A matrix under an option."""

    option: Option
    tensors: Mapping[str, Tensor]
    """What is stored, by the name after the module's."""

    @property
    def dense(self) -> Tensor:
        """[N, K] float32: the values that are read back; made anew each time."""
        tensors, kind = self.tensors, self.option.kind
        if kind == "int":
            return widened(integers_of(self), tensors["weight_scale"])
        if kind == "lowrank":
            return tensors["weight"].float() @ tensors["weight_right"].float()
        if kind == "sparse":
            return scattered(tensors["weight"].float(), tensors["weight_bitmask"], int(tensors["weight_shape"][1]))
        return tensors["weight"].float()

    @property
    def bytes(self) -> int:
        """On disk, the file's header aside."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def integers_of(variant: Variant) -> Tensor:
    """[N, K] int8 of an integer matrix."""
    tensors, bits = variant.tensors, variant.option.bits
    columns = int(tensors["weight_shape"][1])
    packed = tensors["weight_packed"].view(torch.uint8)[:, : -(-columns * bits // 8)]
    if bits not in (4, 8):
        packed, bits = unpacked(packed, bits, columns), 8
    return values(Stored(packed, None, Scheme(bits), columns))


def mask_of(variant: Variant) -> Tensor:
    """[N, K]: where a sparse matrix has values."""
    columns = int(variant.tensors["weight_shape"][1])
    bits = np.unpackbits(variant.tensors["weight_bitmask"].cpu().numpy(), axis=1, count=columns, bitorder="little")
    return torch.from_numpy(bits.astype(bool))


def degraded(weight: Tensor, option: Option, moments: Moments | None) -> Variant:
    """`weight` [N, K] under `option`; without `moments` all columns count alike.

    >>> variant = degraded(torch.eye(64), options.option("int4"), None)
    >>> variant.bytes == options.stored_bytes(variant.option, 64, 64, 4), torch.equal(variant.dense, torch.eye(64))
    (True, True)
    """
    weight = weight.detach()
    known = Moments.identity(weight.shape[1], weight.device) if moments is None else moments
    if option.kind == "int":
        return _integers(weight, option, known)
    if option.kind == "sparse":
        return _sparse(weight, option, known)
    if option.kind == "lowrank":
        left, right = factors(weight, options.rank(option, *weight.shape), known)
        return Variant(option, {"weight": left, "weight_right": right})
    return Variant(option, {"weight": weight})


def _integers(weight: Tensor, option: Option, moments: Moments) -> Variant:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    q, scale = quantised(weight, option, moments)
    tensors = {"weight_packed": pack_to_int32(q, option.bits), "weight_scale": scale, "weight_shape": torch.tensor(weight.shape)}
    return Variant(option, tensors)


def _sparse(weight: Tensor, option: Option, moments: Moments) -> Variant:
    kept, mask = pruned(weight, option, moments)
    bits = torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=1, bitorder="little"))
    tensors = {"weight": kept[mask].to(weight.dtype), "weight_bitmask": bits, "weight_shape": torch.tensor(weight.shape)}
    return Variant(option, tensors)
