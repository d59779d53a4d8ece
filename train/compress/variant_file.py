"""Variants of a model's matrices in one file: what one process worked out, as another needs it.

Promise: what is read is what was written, `dense` to the bit, since it is made of the stored tensors alone. Price: the stored tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from train.compress.candidates import Variant
from train.compress.gptq import widened
from train.compress.options import Option, option

__all__ = ["integers_of", "mask_of", "read_variants", "variant_of", "write_variants"]


def variant_of(chosen: Option, tensors: Mapping[str, Tensor]) -> Variant:
    """The variant whose stored tensors these are."""
    if chosen.kind == "int":
        return Variant(chosen, widened(integers_of(chosen, tensors), tensors["weight_scale"]), tensors)
    if chosen.kind == "lowrank":
        return Variant(chosen, tensors["weight"].float() @ tensors["weight_right"].float(), tensors)
    if chosen.kind == "sparse":
        mask = mask_of(tensors)
        return Variant(chosen, torch.zeros(mask.shape).masked_scatter_(mask, tensors["weight"].float()), tensors)
    return Variant(chosen, tensors["weight"].float(), tensors)


def integers_of(chosen: Option, tensors: Mapping[str, Tensor]) -> Tensor:
    """[N, K] int8 of an integer matrix."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    return unpack_from_int32(tensors["weight_packed"], chosen.bits, torch.Size(tensors["weight_shape"].tolist()))


def mask_of(tensors: Mapping[str, Tensor]) -> Tensor:
    """[N, K]: where a sparse matrix has values."""
    columns = int(tensors["weight_shape"][1])
    bits = np.unpackbits(tensors["weight_bitmask"].cpu().numpy(), axis=1, count=columns, bitorder="little")
    return torch.from_numpy(bits.astype(bool))


def write_variants(path: Path, variants: Mapping[str, Variant]) -> None:
    """Write `variants` (module path -> variant) as one safetensors file."""
    tensors = {f"{name}:{key}": tensor.contiguous() for name, variant in variants.items() for key, tensor in variant.tensors.items()}
    save_file(tensors, path, metadata={"options": json.dumps({name: variant.option.name for name, variant in variants.items()})})


def read_variants(path: Path) -> dict[str, Variant]:
    """What `write_variants` wrote."""
    with safe_open(path, framework="pt") as opened:
        names = json.loads(opened.metadata()["options"])
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in names}
        for key in opened.keys():  # noqa: SIM118  safe_open is no mapping
            name, _, part = key.rpartition(":")
            parts[name][part] = opened.get_tensor(key)
    return {name: variant_of(option(chosen), parts[name]) for name, chosen in names.items()}
