"""What the certificate will say at most, foreseen from the search's own prompts. Pure.

Promise: where the search's prompts and the certificate's are drawn alike, the certificate's one-sided 95 % upper bound stays
below `foreseen` in about 95 % of draws. A plan whose plain figure merely keeps to the budget would fail its certificate every
other time: both sets of prompts err, and the certificate adds a bound of its own. Price: a sum over prompts.

With p the figure on the search's prompts, s its standard error there and s' what it will be on the certificate's prompts, the
certificate says p' + z s' of a p' whose error is relative, since prompts differ in how much they diverge and a lucky draw shows too
little of both figure and spread: p' stays below f p with f = exp(z √(s² + s'²) / p), z = 1.645, and s' grows with √p'. So
f p + √f z s' covers it (simulated in the tests; the symmetric p + z √(s² + s'²) covers 84 to 91 % of draws, not 95). Few divergent
tokens are not normal: the Clopper-Pearson bound exceeds p' + z s' by about (z² + 2) / 3 tokens, added in units of the design effect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["ENOUGH_PROMPTS", "foreseen"]

ENOUGH_PROMPTS = 100
"""From how many prompts on a bound holds in about 95 % of draws however unevenly prompts diverge (simulated in the tests): of fewer, too
often none is of the rare kind that diverges much, and no statistic of the others tells."""
_Z = 1.645
_MOST = 2.0  # the largest exponent: of one or two divergent tokens nobody knows the spread


def foreseen(sums: Sequence[float], lengths: Sequence[int], held_out: int, *, counts: bool) -> float:
    """What the upper bound of the mean per token will stay below on `held_out` tokens of other prompts.

    `sums`: the total over each of the search's prompts, `lengths`: its tokens; `counts`: whether the totals count tokens.

    >>> round(foreseen([1, 0] * 48, [64] * 96, 96 * 64, counts=True), 4)  # 48 of 6,144 tokens, 0.78 %, judged again on as many
    0.0134
    """
    total, length = np.asarray(sums, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    tokens, mean, size = length.sum(), total.sum() / length.sum(), len(total)
    between = float(((total - mean * length) ** 2).sum()) * size / max(size - 1, 1) / tokens**2
    skew = 0.0
    if counts:
        independent = float(max(mean, 1 / tokens) * (1 - mean) / tokens)
        between = max(between, independent)
        skew = (_Z**2 + 2) / 3 * between / independent / held_out if independent > 0 else 0.0
    there, least = between * tokens / held_out, max(mean, 1 / tokens) if counts else mean
    factor = math.exp(min(_Z * math.sqrt(between + there) / least, _MOST)) if least > 0 else 1.0
    return float(least * factor + math.sqrt(factor) * _Z * math.sqrt(there) + skew)
