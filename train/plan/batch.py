"""Batch size and learning rate for an amount of compute.

Promise: two published power laws, and a floor on steps, in one place, so that a sweep's small models are trained as the plan's large one
will be. Price: none. Source: DeepSeek LLM (Bi et al. 2024, §3): B = 0.2920·C^0.3271 tokens, η = 0.3118·C^-0.1250.
"""

from __future__ import annotations

__all__ = ["GOOD_STEPS", "batch_tokens", "learning_rate"]

GOOD_STEPS = 300
"""Adam needs some; small budgets get smaller batches until they have them."""


def batch_tokens(flops: float, positions: float) -> float:
    """Tokens of a batch, for a run of so many FLOPs over so many positions.

    >>> round(batch_tokens(1e20, 1e10))
    1017145
    """
    return float(min(0.2920 * flops**0.3271, positions / GOOD_STEPS))


def learning_rate(flops: float) -> float:
    """Peak rate, to three digits."""
    return float(f"{0.3118 * max(flops, 1.0) ** -0.1250:.3g}")
