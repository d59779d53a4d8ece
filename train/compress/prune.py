"""Weights set to zero: by magnitude, by Wanda, or by SparseGPT, which also puts right what is left; half of every four, or any share.

Promise: 2:4 holds exactly (of every four neighbouring columns two are zero, a remainder of the row is thinned to two); else exactly
the option's share of the matrix is kept: in every row alike (wanda), or wherever it is worth most (magnitude, and sparsegpt within
each block of 128 columns). Price: a sort for the first two; SparseGPT N K^2 multiplications and a Cholesky factor of the moments.
Sources: SparseGPT (arXiv 2301.00774), Wanda (2306.11695).
"""

from __future__ import annotations

import torch
from torch import Tensor

from train.compress.calibrate import Moments
from train.compress.compensate import compensate
from train.compress.options import Option, kept_per_row

__all__ = ["pruned"]

_BLOCK = 128
"""Columns that SparseGPT chooses among at once."""


def pruned(weight: Tensor, option: Option, moments: Moments) -> tuple[Tensor, Tensor]:
    """(`weight` [N, K] in float32 with zeros, the mask [N, K] of what is kept).

    >>> from train.compress.options import option
    >>> values, mask = pruned(torch.tensor([[1.0, -4.0, 3.0, 2.0]]), option("2:4-magnitude"), Moments.identity(4))
    >>> values.tolist()
    [[0.0, -4.0, 3.0, 0.0]]
    """
    assert option.kind == "sparse"
    wide = weight.detach().float()
    if option.method == "sparsegpt":
        return _sparsegpt(wide, option, moments)
    worth = wide.abs() if option.method == "magnitude" else wide.abs() * moments.xx.diagonal().clamp(min=0).sqrt()
    if option.pattern:
        mask = _of_every_four(worth)
    elif option.method == "wanda":
        mask = _largest(worth, kept_per_row(option, wide.shape[1]))
    else:
        mask = _largest(worth.view(1, -1), kept_per_row(option, wide.shape[1]) * len(wide)).view_as(worth)
    return wide * mask, mask


def _largest(worth: Tensor, count: int) -> Tensor:
    """The mask of the `count` largest of each row."""
    mask = torch.zeros_like(worth, dtype=torch.bool)
    return mask.scatter_(1, worth.topk(count, dim=1).indices, True)


def _of_every_four(worth: Tensor) -> Tensor:
    """The mask of the two largest of every four columns; of a remainder the two largest."""
    rows, whole = len(worth), worth.shape[1] // 4 * 4
    mask = _largest(worth[:, :whole].reshape(-1, 4), 2).view(rows, whole) if whole else worth.new_zeros((rows, 0), dtype=torch.bool)
    rest = worth[:, whole:]
    return torch.cat([mask, _largest(rest, min(2, rest.shape[1]))], 1) if rest.shape[1] else mask


def _sparsegpt(wide: Tensor, option: Option, moments: Moments) -> tuple[Tensor, Tensor]:
    root = moments.inverse_root
    columns_, rows = wide.shape[1], len(wide)
    block = 4 if option.pattern else _BLOCK
    mask = torch.zeros(columns_, rows, dtype=torch.bool, device=wide.device)
    kept = kept_per_row(option, columns_)

    def replace(j: int, columns: Tensor) -> Tensor:
        if j % block == 0:
            end = min(j + block, columns_)
            worth = (columns[j:end] / root.diagonal()[j:end, None]).square()
            if option.pattern:
                mask[j:end] = _of_every_four(worth.T).T
            else:  # so many of the block that the blocks together keep the share
                count = (end * kept // columns_ - j * kept // columns_) * rows
                mask[j:end] = _largest(worth.reshape(1, -1), count).view_as(worth)
        return columns[j] * mask[j]

    values = compensate(wide, root, replace)
    return values, mask.T.contiguous()
