"""Our own products: near float64, and bitwise the same in any company, at any place and with any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from serve.engine.linear import Side, Stored, fuse
from serve.engine.native.library import refusal
from serve.engine.native.linear import NativeLinear, fits
from serve.engine.quantised import Scheme

pytestmark = pytest.mark.skipif(refusal() is not None, reason=str(refusal()))

SCHEMES = (None, Scheme(8), Scheme(8, 32), Scheme(8, 128), Scheme(4), Scheme(4, 32), Scheme(4, 64), Scheme(4, 128), Scheme(4, 256))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make(rows: int, width: int, scheme: Scheme | None, seed: int, biased: bool = False) -> tuple[Stored, Tensor]:
    """A stored projection and the matrix it stands for, in float64."""
    generator = torch.Generator().manual_seed(seed)
    bias = torch.randn(rows, generator=generator).bfloat16() if biased else None
    if scheme is None:
        weight = torch.randn(rows, width, generator=generator).bfloat16()
        return Stored(weight, bias), weight.double()
    values = torch.randint(-scheme.offset, scheme.offset, (rows, width), generator=generator)
    groups = -(-width // scheme.group) if scheme.group else 1
    scale = ((torch.rand(rows, groups, generator=generator) + 0.5) / scheme.offset).bfloat16()
    wide = values.double() * scale.double().repeat_interleave(scheme.group or width, 1)[:, :width]
    return Stored(packed(values, scheme), bias, scheme, width, scale), wide


def packed(values: Tensor, scheme: Scheme) -> Tensor:
    """As the folder has it: int32 words, seen as bytes, of which the first hold values."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    words = pack_to_int32(values.to(torch.int8), scheme.bits)
    return words.view(torch.uint8)[:, : -(-values.shape[1] * scheme.bits // 8)]


def activations(rows: int, width: int, seed: int = 99) -> Tensor:
    """With outliers, as hidden states have them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator)
    x[:, ::37] *= 50
    return x


def assert_near(y: Tensor, x: Tensor, weight: Tensor, fixed: bool = True, bias: Tensor | float = 0.0) -> None:
    """Error against float64: float32's sums, and for fixed-point activations half a step of 1/32767 of the largest for each weight."""
    x = x.double()
    limit = 1e-5 * (x.abs() @ weight.abs().T + abs(bias)) + 1e-30
    if fixed:
        limit += x.abs().amax(1, keepdim=True) / 65000 * weight.abs().sum(1)
    assert float(((y.double() - x @ weight.T - bias).abs() / limit).max()) <= 1


parts = st.lists(st.tuples(st.integers(1, 70), st.booleans()), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(parts=parts, width=st.integers(1, 400), num_tokens=st.integers(0, 40), scheme=st.sampled_from(SCHEMES), dtype=st.booleans())
def test_products_are_those_of_float64(parts: list, width: int, num_tokens: int, scheme: Scheme | None, dtype: bool) -> None:
    made = [make(rows, width, scheme, seed, biased) for seed, (rows, biased) in enumerate(parts)]
    layer = fuse([part for part, _ in made], native=True)
    assert isinstance(layer, NativeLinear)
    x = activations(num_tokens, width).to(torch.bfloat16 if dtype else torch.float32)
    y = layer(x, torch.float32)
    bias = torch.cat([torch.zeros(len(w)) if part.bias is None else part.bias.float() for part, w in made])
    assert y.shape == (num_tokens, len(bias))
    weight = torch.cat([w for _, w in made])
    if num_tokens:
        assert_near(y, x, weight, scheme is not None, bias)
    assert torch.equal(layer(x), y.to(x.dtype)), "in the activations' type: the same, rounded once"


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 100),
    width=st.integers(1, 500),
    scheme=st.sampled_from(SCHEMES),
    data=st.data(),
)
def test_a_row_is_bitwise_the_same_in_any_company(rows: int, width: int, scheme: Scheme | None, data: st.DataObject) -> None:
    layer = fuse([make(rows, width, scheme, 0, True)[0]], native=True)
    x = activations(64, width)
    torch.set_num_threads(1)
    alone = torch.cat([layer(row[None]) for row in x])
    for _ in range(4):
        company = data.draw(st.lists(st.integers(0, 63), min_size=1, max_size=70))
        torch.set_num_threads(data.draw(st.integers(1, 3)))
        assert torch.equal(layer(x[company]), alone[company])


def test_prefill_goes_by_blocks_and_changes_nothing() -> None:
    """More rows than a block, more columns than the caches hold at once, for every kind."""
    x = activations(300, 4100)
    for scheme in (None, Scheme(8), Scheme(4, 64)):
        layer = fuse([make(70, 4100, scheme, 0)[0]], native=True)
        torch.set_num_threads(2)
        together = layer(x)
        torch.set_num_threads(1)
        for start, end in ((0, 1), (7, 20), (100, 228), (299, 300)):
            assert torch.equal(layer(x[start:end]), together[start:end])


@pytest.mark.parametrize("scheme", [Scheme(8), Scheme(4, 64)])
def test_quantised_products_are_closer_than_bf16_activations(scheme: Scheme) -> None:
    """What fixed-point activations lose is less than what rounding them to bf16 would lose, outliers or not."""
    part, weight = make(256, 1024, scheme, 0)
    layer = fuse([part], native=True)
    for x in (torch.randn(16, 1024, generator=torch.Generator().manual_seed(1)), activations(16, 1024)):
        exact = x.double() @ weight.T
        ours = (layer(x).double() - exact).abs().mean()
        rounded = (x.bfloat16().double() @ weight.T - exact).abs().mean()
        assert ours < rounded / 10


def test_extremes_are_exact() -> None:
    """The largest weights and activations everywhere: the integer sums reach their bound and do not overflow."""
    for scheme, low in ((Scheme(8), -128), (Scheme(4, 128), -8)):
        values = torch.full((32, 1024), low)
        part = Stored(packed(values, scheme), None, scheme, 1024, torch.ones(32, 1 if scheme.group == 0 else 8))
        layer = fuse([part], native=True)
        for sign in (1.0, -1.0):
            x = torch.full((3, 1024), sign * 32767.0)
            assert torch.equal(layer(x), torch.full((3, 32), sign * 32767.0 * low * 1024))


@pytest.mark.parametrize("scheme", [None, Scheme(8), Scheme(4, 64)])
def test_zeros_stay_zeros_and_what_is_not_finite_shows(scheme: Scheme | None) -> None:
    layer = fuse([make(40, 200, scheme, 0)[0]], native=True)
    assert torch.equal(layer(torch.zeros(2, 200)), torch.zeros(2, 40))
    for bad in (float("inf"), float("nan")):
        x = torch.ones(3, 200)
        x[1, 150] = bad
        y = layer(x)
        assert y[[0, 2]].isfinite().all()
        assert not y[1].isfinite().any()


def test_strided_rows_and_transposed_matrices_are_read_where_they_are() -> None:
    part, weight = make(48, 64, None, 0)
    wide = torch.zeros(48, 100, dtype=torch.bfloat16)
    wide[:, 20:84] = part.weight
    x = activations(10, 64)
    plain = NativeLinear([part.weight])(x)
    assert torch.equal(NativeLinear([wide[:, 20:84]])(x), plain)
    assert torch.equal(NativeLinear([part.weight.T.contiguous().T])(x), plain)
    padded = torch.zeros(10, 90)
    padded[:, 5:69] = x
    assert torch.equal(NativeLinear([part.weight])(padded[:, 5:69]), plain)
    assert torch.equal(NativeLinear([part.weight])(x.T.contiguous().T), plain)
    assert_near(plain, x, weight, False)


def test_parts_of_different_kinds_stand_side_by_side() -> None:
    made = [make(40, 128, scheme, seed) for seed, scheme in enumerate((Scheme(8), Scheme(4, 64), None))]
    layer = fuse([part for part, _ in made], native=True)
    assert isinstance(layer, Side)
    assert all(isinstance(part, NativeLinear) for part in layer.parts)
    x = activations(5, 128)
    assert_near(layer(x), x, torch.cat([weight for _, weight in made]))


def test_groups_the_kernels_lack_run_on_torch() -> None:
    assert not fits(Scheme(4, 24))
    part, weight = make(40, 96, Scheme(4, 24), 0)
    layer = fuse([part], native=True)
    assert not isinstance(layer, NativeLinear)
    x = activations(5, 96)
    assert_near(layer(x), x, weight)


@pytest.mark.parametrize("scheme", [Scheme(8), Scheme(4, 64)])
@pytest.mark.parametrize(("outlier", "least", "most"), [(0.0, 0.0, 0.03), (100.0, 0.3, 0.8), (1000.0, 3.0, 8.0)])
def test_fixed_point_against_activations_in_bfloat16(scheme: Scheme, outlier: float, least: float, most: float) -> None:
    """The error as a share of bfloat16's, as docs/engine.md has it: one column in 128 that is much larger costs the others their bits."""
    stored, weight = make(64, 1024, scheme, 1)
    x = torch.randn(16, 1024, generator=torch.Generator().manual_seed(3))
    if outlier:
        x[:, ::128] = outlier
    exact = x.double() @ weight.T
    ours, theirs = fuse([stored], native=True)(x).double(), x.bfloat16().double() @ weight.T
    share = (ours - exact).norm() / (theirs - exact).norm()
    assert least <= share <= most
