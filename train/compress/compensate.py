"""Column by column with compensation: what changing one column does wrong, the columns still to come put right.

Promise: what GPTQ and SparseGPT share, the optimal brain surgeon's update with one Hessian for all rows, in exact arithmetic the best
answer of the later columns to each column's change. Price: N K^2 multiplications for W [N, K], in blocks so that most of them are
matrix products.
Source: GPTQ (arXiv 2210.17323, algorithm 1); SparseGPT (arXiv 2301.00774, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["compensate"]

_BLOCK = 64

Replace = Callable[[int, Tensor], Tensor]
"""(j, columns [K, N] as compensated so far) -> what column j becomes, [N]."""


def compensate(weight: Tensor, inverse_root: Tensor, replace: Replace) -> Tensor:
    """`weight` [N, K] with every column replaced, from the first to the last, each error spread over the columns after it.

    `inverse_root` [K, K]: see `Moments.inverse_root`. Where a column j is asked for, its neighbours up to the next multiple of 64
    are up to date as well, and where j is such a multiple, all that come after.

    >>> root = torch.linalg.cholesky(torch.linalg.inv(torch.tensor([[1.0, 0.5], [0.5, 1.0]])), upper=True)
    >>> compensate(torch.tensor([[1.0, 1.0]]), root, lambda j, columns: torch.zeros(1) if j == 0 else columns[j]).tolist()
    [[0.0, 1.5]]
    """
    columns = weight.float().T.contiguous()
    for start in range(0, len(columns), _BLOCK):
        end = min(start + _BLOCK, len(columns))
        errors = torch.empty(end - start, columns.shape[1], device=columns.device)
        for j in range(start, end):
            new = replace(j, columns)
            error = errors[j - start] = (columns[j] - new) / inverse_root[j, j]
            columns[j] = new
            columns[j + 1 : end].addr_(inverse_root[j, j + 1 : end], error, alpha=-1)
        columns[end:].addmm_(inverse_root[start:end, end:].T, errors, alpha=-1)
    return columns.T.contiguous()
