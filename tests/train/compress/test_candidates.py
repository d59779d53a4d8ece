"""Variants: to the byte what was promised, and to the bit what a reader computes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from serve.engine.layouts import scattered
from train.compress.calibrate import Moments
from train.compress.candidates import degraded
from train.compress.options import NAMES, option, stored_bytes


@given(
    seed=st.integers(0, 2**31),
    name=st.sampled_from([*NAMES, "int2", "int7-g32", "sparse90-wanda", "rank10"]),
    rows=st.integers(2, 20),
    columns=st.integers(4, 140),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    seen=st.booleans(),
)
def test_bytes_are_as_promised_and_values_as_stored(seed, name, rows, columns, dtype, seen):
    generator = torch.Generator().manual_seed(seed)
    weight, x = torch.randn(rows, columns, generator=generator).to(dtype), torch.randn(30, columns, generator=generator)
    variant = degraded(weight, option(name), Moments(x.T @ x / 30, 30) if seen else None)
    assert variant.bytes == stored_bytes(option(name), rows, columns, weight.element_size())
    assert torch.equal(read(dict(variant.tensors), variant.option.bits), variant.dense)
    assert torch.isfinite(variant.dense).all()


def read(tensors: dict[str, torch.Tensor], bits: int) -> torch.Tensor:
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    if "weight_packed" in tensors:
        q = unpack_from_int32(tensors["weight_packed"], bits, torch.Size(tensors["weight_shape"].tolist()))
        groups = tensors["weight_scale"].float()
        return q.float() * groups.repeat_interleave(q.shape[1] // groups.shape[1], 1)
    if "weight_bitmask" in tensors:
        return scattered(tensors["weight"], tensors["weight_bitmask"], int(tensors["weight_shape"][1])).float()
    if "weight_right" in tensors:
        return tensors["weight"].float() @ tensors["weight_right"].float()
    return tensors["weight"].float()
