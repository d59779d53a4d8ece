"""Variants in a file: what is read is what was written, and its values come of the stored tensors alone."""

from __future__ import annotations

import pytest
import torch

from train.compress import options
from train.compress.calibrate import Moments
from train.compress.candidates import Variant, degraded, integers_of, mask_of
from train.compress.variant_file import read_variants, write_variants

NAMES = ("keep", "int8", "int4", "int3-rtn", "sparse75-sparsegpt", "2:4-wanda", "rank50")


def variant(name: str, dtype: torch.dtype = torch.float32) -> Variant:
    torch.manual_seed(0)
    inputs = torch.randn(200, 50)
    return degraded(torch.randn(24, 50).to(dtype), options.option(name), Moments(inputs.T @ inputs / 200, 200))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_read_is_what_was_written(dtype, tmp_path):
    written = {f"layers.{number}.proj": variant(name, dtype) for number, name in enumerate(NAMES)}
    write_variants(tmp_path / "variants.safetensors", written)
    found = read_variants(tmp_path / "variants.safetensors")
    assert found.keys() == written.keys()
    for name, each in written.items():
        assert found[name].option == each.option
        assert found[name].bytes == each.bytes
        assert torch.equal(found[name].dense, each.dense)


def test_the_values_come_of_the_stored_tensors():
    four = variant("int4")
    doubled = Variant(four.option, {**four.tensors, "weight_scale": four.tensors["weight_scale"] * 2})
    assert torch.equal(doubled.dense, four.dense * 2)
    assert int(integers_of(four).abs().max()) <= 8
    sparse = variant("sparse75-sparsegpt")
    assert torch.equal(mask_of(sparse), sparse.dense != 0)
