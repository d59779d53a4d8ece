"""Thin factors: the least error of their rank under the moments."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from train.compress.calibrate import Moments
from train.compress.lowrank import factors


@given(st.integers(0, 2**31), st.integers(2, 12), st.integers(2, 12), st.data())
def test_whitened_factors_err_no_more_than_plain_ones(seed, rows, columns, data):
    rank = data.draw(st.integers(1, min(rows, columns)))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(50, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    weight, moments = torch.randn(rows, columns, generator=generator), Moments(x.T @ x / 50, 50)
    seen = Moments(moments.damped.float(), 50)
    whitened, plain = (torch.matmul(*factors(weight, rank, known)) - weight for known in (moments, Moments.identity(columns)))
    scale = seen.errors(weight).sum()
    assert seen.errors(whitened).sum() <= seen.errors(plain).sum() + 1e-4 * scale
    if rank == min(rows, columns):
        assert seen.errors(whitened).sum() <= 1e-4 * scale


def test_factors_have_the_weights_type():
    left, right = factors(torch.randn(6, 4).bfloat16(), 2, Moments.identity(4))
    assert (left.shape, right.shape, left.dtype, right.dtype) == ((6, 2), (2, 4), torch.bfloat16, torch.bfloat16)
