"""Stored otherwise than run: any bits and any mask come back exactly."""

from __future__ import annotations

import numpy as np
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from hypothesis import given
from hypothesis import strategies as st

from serve.engine.layouts import scattered, unpacked

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 70))


@given(st.integers(0, 2**31), st.integers(2, 8), SIZES)
def test_what_the_library_packs_is_unpacked(seed: int, bits: int, size: tuple[int, int]) -> None:
    half = 1 << (bits - 1)
    values = torch.randint(-half, half, size, generator=torch.Generator().manual_seed(seed)).to(torch.int8)
    packed = pack_to_int32(values, bits).view(torch.uint8)[:, : -(-size[1] * bits // 8)]
    assert torch.equal(unpacked(packed, bits, size[1]).to(torch.int16) - 128, values.to(torch.int16))


@given(st.integers(0, 2**31), st.floats(0, 1), SIZES)
def test_values_go_where_their_mask_says(seed: int, density: float, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(size) < density
    dense = np.where(mask, rng.standard_normal(size), 0).astype(np.float32)
    bitmask = torch.from_numpy(np.packbits(mask, axis=1, bitorder="little"))
    assert np.array_equal(scattered(torch.from_numpy(dense[mask]), bitmask, size[1]).numpy(), dense)
