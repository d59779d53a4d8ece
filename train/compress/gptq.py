"""Weights to integers of 2 to 8 bits with a scale per row or per group of columns: round-to-nearest, and GPTQ.

Promise: `quantised` gives values that fit their bits and scales as they are stored; under the given moments GPTQ's error is no row's
larger than round-to-nearest's, since a row where it would be keeps the latter. Price: GPTQ N K^2 multiplications and a Cholesky factor of
the moments, which all matrices that read the same input share; 20 roundings of W to choose the scales.
Source: GPTQ (arXiv 2210.17323) with its activation order and groups that stay where they are; scales by search over clipped
ranges weighed by the inputs' mean squares, as in OmniQuant (2308.13137) and AWQ (2306.00978); llama.cpp's Q4_0 for scales with a sign,
which give the largest weight of a group the one value that has no opposite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from train.compress.calibrate import Moments
from train.compress.compensate import compensate
from train.compress.options import Option, fitting_group

__all__ = ["limits", "quantised", "widened"]

_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
"""Shares of a group's range that its integers may span; what is beyond is clipped."""


def limits(bits: int) -> tuple[int, int]:
    """The least and the largest value; 8 bits leave out -128, which int8 kernels would have to treat apart.

    >>> limits(4), limits(8)
    ((-8, 7), (-127, 127))
    """
    top = (1 << (bits - 1)) - 1
    return (-top if bits == 8 else -top - 1), top


def quantised(weight: Tensor, option: Option, moments: Moments) -> tuple[Tensor, Tensor]:
    """`weight` [N, K] as (q int8 [N, K], scale [N, groups] of the weight's type) with weight ≈ q * scale."""
    assert option.kind == "int"
    wide, group = weight.detach().float(), fitting_group(option.group_size, weight.shape[1]) or weight.shape[1]
    plain = _absmax_scale(wide, option.bits, group, weight.dtype)
    nearest = _rounded(wide, plain, option.bits)
    if option.is_drop:
        return torch.zeros_like(nearest), torch.ones_like(plain)
    if option.method == "rtn":
        return nearest, plain
    scale = _searched_scale(wide, option.bits, group, moments.xx.diagonal(), weight.dtype)
    q = _gptq(wide, scale, option.bits, moments)
    worse = moments.errors(wide - widened(q, scale)) > moments.errors(wide - widened(nearest, plain))
    return torch.where(worse[:, None], nearest, q), torch.where(worse[:, None], plain, scale)


def widened(q: Tensor, scale: Tensor) -> Tensor:
    """q [N, K] * scale [N, groups] in float32, as a reader of the folder computes it."""
    rows, columns = q.shape
    return (q.float().view(rows, scale.shape[1], -1) * scale.float()[:, :, None]).view(rows, columns)


def _rounded(wide: Tensor, scale: Tensor, bits: int) -> Tensor:
    rows, columns = wide.shape
    steps = wide.view(rows, scale.shape[1], -1) / scale.float()[:, :, None]
    return steps.round_().clamp_(*limits(bits)).to(torch.int8).view(rows, columns)


def _absmax_scale(wide: Tensor, bits: int, group: int, dtype: torch.dtype) -> Tensor:
    """[N, groups]: the largest magnitude of a group becomes the largest value."""
    return _scale(wide.view(len(wide), -1, group).abs().amax(2) / limits(bits)[1], dtype)


def _scale(steps: Tensor, dtype: torch.dtype) -> Tensor:
    """Steps that nothing is divided by zero with: 1 where there is none, as `dtype` holds them."""
    sizes = steps.abs().clamp(min=torch.finfo(dtype).tiny)
    return torch.where(steps == 0, torch.ones_like(steps), torch.where(steps < 0, -sizes, sizes)).to(dtype)


def _searched_scale(wide: Tensor, bits: int, group: int, mean_squares: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, groups] in `dtype`: of several clipped ranges, with and without a sign, the one whose rounding errs least."""
    grouped = wide.view(len(wide), -1, group)
    weights = mean_squares.view(1, -1, group)
    signed = grouped.gather(2, grouped.abs().argmax(2, keepdim=True))[:, :, 0] / limits(bits)[0]
    best = torch.ones(grouped.shape[:2], dtype=dtype, device=wide.device)
    least = torch.full(grouped.shape[:2], torch.inf, device=wide.device)
    for widest in (grouped.abs().amax(2) / limits(bits)[1], signed):
        for clip in _CLIPS:
            scale = _scale(widest * clip, dtype)
            q = (grouped / scale.float()[:, :, None]).round_().clamp_(*limits(bits))
            error = (q.mul_(scale.float()[:, :, None]).sub_(grouped).square_() * weights).sum(2)
            better = error < least
            best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best


def _gptq(wide: Tensor, scale: Tensor, bits: int, moments: Moments) -> Tensor:
    order = moments.order
    steps = scale.float().repeat_interleave(wide.shape[1] // scale.shape[1], 1).T[order].contiguous()
    least, largest = limits(bits)

    def nearest(j: int, columns: Tensor) -> Tensor:
        return (columns[j] / steps[j]).round_().clamp_(least, largest).mul_(steps[j])

    rounded = compensate(wide[:, order], moments.ordered_inverse_root, nearest)
    q = torch.empty_like(wide, dtype=torch.int8)
    q[:, order] = (rounded / steps.T).round_().to(torch.int8)
    return q
