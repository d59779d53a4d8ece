"""Batch size and learning rate for an amount of compute.

Promise: published power laws and a floor on steps, in one place, so that a sweep's small models are trained as the plan's large one will
be. Price: none. Sources: DeepSeek LLM (Bi et al. 2024, §3): B = 0.2920·C^0.3271 tokens, η = 0.3118·C^-0.1250, measured from 10^17 FLOPs
on models whose width grows with C. Far below, C says little and width all (Yang et al. 2021, arXiv 2203.03466: η in inverse proportion).
The constant is ours, from widths of 32 to 192 on 0.2 to 1.2 M tokens, and a compromise: half of it makes English up to 2 % worse, and
spares Python sources, with more token ids and one to three sequences a batch, 2 %, and runs of 0.2 M tokens now and then 10 %. Between,
both have a say.
"""

from __future__ import annotations

import math

__all__ = ["GOOD_STEPS", "NARROW_RATE", "batch_tokens", "learning_rate", "rate_by_compute", "rate_by_width"]

GOOD_STEPS = 300
"""Adam needs some; small budgets get smaller batches until they have them."""

NARROW_RATE = 0.8
"""Of a small run of a model one wide; of wider ones in proportion less."""
_BY_WIDTH_BELOW, _BY_COMPUTE_ABOVE = 1e14, 1e17


def batch_tokens(flops: float, positions: float) -> float:
    """Tokens of a batch, for a run of so many FLOPs over so many positions.

    >>> round(batch_tokens(1e20, 1e10))
    1017145
    """
    return float(min(0.2920 * flops**0.3271, positions / GOOD_STEPS))


def learning_rate(flops: float, width: int) -> float:
    """Peak rate, to three digits, of a model whose residual stream is so wide.

    By width below 10^14 FLOPs, by compute above 10^17, between them the geometric mean that log C weighs.

    >>> learning_rate(1e20, 1024), learning_rate(1e15, 256), learning_rate(1e12, 32)
    (0.000986, 0.00344, 0.025)
    """
    weight = math.log(max(flops, 1.0) / _BY_WIDTH_BELOW) / math.log(_BY_COMPUTE_ABOVE / _BY_WIDTH_BELOW)
    weight = min(1.0, max(0.0, weight))
    return float(f"{rate_by_compute(flops) ** weight * rate_by_width(width) ** (1 - weight):.3g}")


def rate_by_compute(flops: float) -> float:
    """DeepSeek LLM's peak rate."""
    return float(0.3118 * max(flops, 1.0) ** -0.1250)


def rate_by_width(width: int) -> float:
    """The peak rate of a small run."""
    return NARROW_RATE / width
