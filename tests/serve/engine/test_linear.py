"""Products with weights: stacked, quantised, in slabs or by a kernel, always x @ weight.T + bias."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from serve.engine.linear import _PACK_FLOAT32_FROM, INT8_TOKENS, Dense, Grouped, Int8, Linear, Side, Stored, fuse
from serve.engine.quantised import Scheme

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.05}
SCHEMES = (None, Scheme(8), Scheme(4, 32), Scheme(4, 64), Scheme(4), Scheme(8, 32), Scheme(4, 24))


def widened(part: Stored) -> Tensor:
    """The matrix a projection stands for, in float64, worked out value by value."""
    if part.scheme is None:
        return part.weight.double()
    bits, group = part.scheme.bits, part.scheme.group or part.columns
    rows = []
    for row in part.weight.tolist():
        number = int.from_bytes(bytes(row), "little")
        rows.append([(number >> (bits * c) & ((1 << bits) - 1)) - (1 << (bits - 1)) for c in range(part.columns)])
    assert part.scale is not None
    return torch.tensor(rows, dtype=torch.float64) * part.scale.double().repeat_interleave(group, 1)[:, : part.columns]


def expected(parts: list[Stored], x: Tensor) -> Tensor:
    """The definition, part by part in float64."""
    products = []
    for part in parts:
        y = x.double() @ widened(part).T
        products.append(y if part.bias is None else y + part.bias.double())
    return torch.cat(products, -1)


def make_part(rows: int, width: int, scheme: Scheme | None, biased: bool, dtype: torch.dtype, seed: int) -> Stored:
    generator = torch.Generator().manual_seed(seed)
    bias = torch.randn(rows, generator=generator).to(dtype) if biased else None
    if scheme is None:
        return Stored((torch.randn(rows, width, generator=generator) / width**0.5).to(dtype), bias)
    packed = torch.randint(0, 256, (rows, -(-width * scheme.bits // 8)), dtype=torch.uint8, generator=generator)
    groups = -(-width // scheme.group) if scheme.group else 1
    scale = (torch.rand(rows, groups, generator=generator) + 0.5) / (0.8 * scheme.offset * width**0.5)
    return Stored(packed, bias, scheme, width, scale.to(dtype))


kinds = st.lists(st.tuples(st.integers(1, 40), st.sampled_from(SCHEMES), st.booleans()), min_size=1, max_size=4)


@settings(max_examples=80)
@given(
    kinds=kinds,
    width=st.sampled_from([1, 24, 36, 64, 96]),
    num_tokens=st.sampled_from([1, 2, 7, INT8_TOKENS, INT8_TOKENS + 1]),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_fused_projections_are_the_projections_side_by_side(kinds: list, width: int, num_tokens: int, dtype: torch.dtype) -> None:
    parts = [make_part(rows, width, scheme, biased, dtype, seed) for seed, (rows, scheme, biased) in enumerate(kinds)]
    layer = fuse(parts)
    x = torch.randn(num_tokens, width, generator=torch.Generator().manual_seed(99)).to(dtype)
    before = x.clone()
    y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected(parts, x), rtol=TOLERANCE[dtype] / 4, atol=TOLERANCE[dtype])
    assert torch.equal(x, before)
    assert torch.equal(layer(x), y), "a product leaves the weights as they were"
    assert isinstance(layer, Side) == (len({scheme for _, scheme, _ in kinds}) > 1)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("num_tokens", [1, 8, 50])
def test_int4_on_torchs_kernel(group: int, num_tokens: int) -> None:
    part = make_part(48, 256, Scheme(4, group), True, torch.bfloat16, 0)
    layer = fuse([part])
    assert isinstance(layer, Grouped)
    assert layer._packed is None, "only one copy is held"
    x = torch.randn(num_tokens, 256, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    torch.testing.assert_close(layer(x).double(), expected([part], x), rtol=0.01, atol=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 8, 50])
def test_a_packed_matrix_is_the_same_matrix(dtype: torch.dtype, num_tokens: int) -> None:
    rows, width = 2048, _PACK_FLOAT32_FROM // 2048 + 1
    part = make_part(rows, width, None, True, dtype, 0)
    layer = Dense(part.weight, part.bias)
    x = torch.randn(num_tokens, width, generator=torch.Generator().manual_seed(1)).to(dtype)
    torch.testing.assert_close(layer(x).double(), expected([part], x), rtol=TOLERANCE[dtype] / 4, atol=TOLERANCE[dtype])
    assert layer.num_bytes == part.weight.nbytes, "packed, it still weighs what it holds"


def test_the_kernel_is_the_plain_product() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(-127, 128, (96, 64), dtype=torch.int8, generator=generator)
    scale = (torch.rand(96, generator=generator) + 0.5).to(torch.bfloat16) / 100
    layer = Int8(rows, scale, bias=torch.ones(96, dtype=torch.bfloat16))
    exact = Int8(rows, scale.double(), bias=torch.ones(96, dtype=torch.float64))
    for num_tokens in (1, 3, INT8_TOKENS, INT8_TOKENS + 1, 40):
        x = torch.randn(num_tokens, 64, generator=generator).to(torch.bfloat16)
        torch.testing.assert_close(layer(x).double(), exact.plain(x.double()), rtol=0.01, atol=0.02)
        torch.testing.assert_close(layer(x).double(), layer.plain(x).double(), rtol=0.02, atol=0.03)


@pytest.mark.parametrize("scheme", [Scheme(8), Scheme(4, 64)])
def test_slabs_of_a_wide_matrix_join_without_a_seam(scheme: Scheme) -> None:
    """More rows than a slab holds, and no multiple of it."""
    part = make_part(150, 1 << 13, scheme, True, torch.float64, 0)
    layer: Linear = fuse([part])
    x = torch.randn(3, 1 << 13, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), expected([part], x), rtol=0, atol=1e-9)


def int8_rows(rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-128, 128, (rows, columns), dtype=torch.int8, generator=generator)
    return values, (torch.rand(rows, generator=generator) + 0.5).to(torch.bfloat16) / 100, torch.ones(rows, dtype=torch.bfloat16)


@pytest.mark.parametrize("offset", [1, 8, 16])
def test_views_at_any_address_are_multiplied(offset: int) -> None:
    """The int8 kernel loads aligned vectors only: a view given to it as it is would end the process."""
    values, scale, bias = int8_rows(40, 64)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    rows, moved = (torch.cat([t.flatten()[:offset], t.flatten()])[offset:].view(t.shape) for t in (values, x))
    assert rows.data_ptr() % 64
    assert torch.equal(Int8(rows, scale, bias)(moved), Int8(values, scale, bias)(x))


def test_columns_of_a_transposed_matrix_are_laid_out_again() -> None:
    weight, scale, _ = int8_rows(32, 32)
    x = torch.randn(2, 32, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    assert torch.equal(Int8(weight.T, scale)(x), Int8(weight.T.contiguous(), scale)(x))
    assert torch.equal(Int8(weight, scale)(x.T.contiguous().T), Int8(weight, scale)(x))
    dense = torch.randn(32, 32, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    torch.testing.assert_close(Dense(dense.T)(x), Dense(dense.T.contiguous())(x))
