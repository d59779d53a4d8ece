"""A matrix as the product of two thin ones: the truncated singular value decomposition that errs least on the inputs seen.

Promise: before the factors are rounded to their type no matrix of this rank has a smaller expected squared error of the outputs under
the (damped) moments. Price: a decomposition of W [N, K], about 10 N K min(N, K) operations, and a Cholesky factor.
Sources: SVD-LLM (arXiv 2403.07378): W L is truncated, L Lᵀ being the moments; ASVD (2312.05821) scales by the diagonal only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from train.compress.calibrate import Moments

__all__ = ["factors"]


def factors(weight: Tensor, rank: int, moments: Moments) -> tuple[Tensor, Tensor]:
    """(left [N, rank], right [rank, K]) in the weight's type, with weight ≈ left @ right.

    >>> left, right = factors(torch.outer(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0])), 1, Moments.identity(3))
    >>> (left @ right).round(decimals=4).tolist()
    [[3.0, 4.0, 5.0], [6.0, 8.0, 10.0]]
    """
    root = torch.linalg.cholesky(moments.damped).float()
    u, s, v = torch.linalg.svd(weight.detach().float() @ root, full_matrices=False)
    share = s[:rank].sqrt()
    right = torch.linalg.solve_triangular(root, share[:, None] * v[:rank], upper=False, left=False)
    return (u[:, :rank] * share).to(weight.dtype).contiguous(), right.to(weight.dtype).contiguous()
