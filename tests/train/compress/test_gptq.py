"""Integers: within their bits, never worse than round-to-nearest under the moments, and better where inputs are correlated."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.compress.calibrate import Moments
from train.compress.gptq import limits, quantised, widened
from train.compress.options import option
from train.compress.quantize import round_to_nearest


def drawn(seed: int, rows: int, columns: int, num: int) -> tuple[torch.Tensor, Moments]:
    """A matrix, and the moments of `num` inputs that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return torch.randn(rows, columns, generator=generator), Moments(x.T @ x / num, num)


@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 9),
    columns=st.sampled_from([1, 5, 32, 64, 96, 130]),
    num=st.sampled_from([1, 20, 300]),
    bits=st.integers(2, 8),
    group=st.sampled_from([0, 32, 64]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_gptq_is_no_worse_than_rounding_to_the_nearest(seed, rows, columns, num, bits, group, dtype):
    weight, moments = drawn(seed, rows, columns, num)
    weight = weight.to(dtype)
    errors = []
    for method in ("rtn", "gptq"):
        q, scale = quantised(weight, option(f"int{bits}-{method}-g{group}"), moments)
        assert q.dtype == torch.int8
        assert scale.dtype == dtype
        assert limits(bits)[0] <= q.min()
        assert q.max() <= limits(bits)[1]
        errors.append(moments.errors(widened(q, scale) - weight.float()))
    assert (errors[1] <= errors[0]).all()


@pytest.mark.parametrize(("bits", "share"), [(8, 0.5), (4, 0.4), (3, 0.4)])
def test_gptq_gains_much_where_inputs_depend_on_each_other(bits, share):
    weight, moments = drawn(0, 64, 256, 64)
    nearest, compensated = (
        moments.errors(widened(*quantised(weight, option(f"int{bits}-{method}-g64"), moments)) - weight).sum() for method in ("rtn", "gptq")
    )
    assert compensated < share * nearest


def test_without_moments_columns_count_alike_and_gptq_only_clips():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    q, scale = quantised(weight, option("int4"), Moments.identity(64))
    assert torch.equal(q, (weight / scale).round().clamp(-8, 7).to(torch.int8))


@given(st.integers(0, 2**31), st.sampled_from([torch.bfloat16, torch.float16, torch.float32]), st.floats(1e-6, 1e3))
def test_int8_is_what_compress_has_always_written(seed, dtype, size):
    weight = (torch.randn(6, 40, generator=torch.Generator().manual_seed(seed)) * size).to(dtype)
    ours, before = quantised(weight, option("int8"), Moments.identity(40)), round_to_nearest(weight, dtype)
    assert torch.equal(ours[0], before[0])
    assert torch.equal(ours[1], before[1])


def test_zeros_and_dead_inputs_stay_finite():
    weight, moments = drawn(1, 4, 64, 20)
    weight[0], weight[:, :32] = 0, 0
    dead = Moments(torch.zeros(64, 64), 1)
    for known in (moments, dead):
        q, scale = quantised(weight, option("int4-g32"), known)
        assert torch.isfinite(scale).all()
        assert torch.equal(widened(q, scale)[0], weight[0])
