"""The distribution that tokens are drawn from, in plain torch: what each sampling option means, for any device.

Promise: every option as transformers and vLLM define it, in this order: temperature, top-k (ties with the k-th stay), top-p (the
smallest set of likeliest tokens with that mass; of equals the lower ids), min-p; all in float64, rows independent of each other.
Price: a sort of the vocabulary with top-p. `pick.py` draws the same tokens on the CPU for less, and a test holds the two together.
Sources: temperature and top-k (Fan et al. 2018), top-p (Holtzman et al. 2020), min-p (arXiv 2407.01082); the order is transformers'.
"""

from __future__ import annotations

from collections.abc import Sequence as Series

import torch
from torch import Tensor

from serve.engine.request import COLDEST, Sampling

__all__ = ["draw", "processed"]


def processed(logits: Tensor, samplings: Series[Sampling]) -> Tensor:
    """The distribution [R, vocab] in float64 that row i of the logits is drawn from by samplings[i]; temperatures above 0."""
    exact = logits.double()
    coldness = _column([max(s.temperature, COLDEST) for s in samplings], exact)
    scaled = (exact - exact.amax(-1, keepdim=True)) / coldness  # at most 0, so nothing overflows to inf
    vocab_size = scaled.shape[-1]
    ranks = [min(s.top_k or vocab_size, vocab_size) for s in samplings]
    if min(ranks) < vocab_size:
        top = scaled.topk(max(rank for rank in ranks if rank < vocab_size), dim=-1).values
        least = top.gather(-1, torch.tensor(ranks, device=top.device)[:, None].clamp(max=top.shape[-1]) - 1)
        least.masked_fill_(_column([rank == vocab_size for rank in ranks], least).bool(), -torch.inf)
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    probabilities = scaled.softmax(-1)
    if any(s.top_p < 1.0 for s in samplings):
        limit = _column([s.top_p if s.top_p < 1.0 else torch.inf for s in samplings], exact)
        ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
        before = ranked.cumsum(-1) - ranked  # mass of the likelier tokens; the first is always kept
        probabilities = torch.zeros_like(ranked).scatter(-1, order, ranked.masked_fill(before >= limit, 0.0))
    if any(s.min_p > 0.0 for s in samplings):
        share = _column([s.min_p for s in samplings], exact)
        probabilities = probabilities.masked_fill(probabilities < share * probabilities.amax(-1, keepdim=True), 0.0)
    return probabilities / probabilities.sum(-1, keepdim=True)


def draw(probabilities: Tensor, uniforms: Series[float]) -> Tensor:
    """One token per row [R, vocab] by inverse CDF in token order: int64 [R]."""
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    targets = torch.minimum(_column(uniforms, total) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, targets, right=True).flatten()


def _column(values: Series[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]
