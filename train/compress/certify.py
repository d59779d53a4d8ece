"""The certificate: what compression did to the tokens on prompts that nothing else has seen, with intervals and the noise.

Promise: every figure is measured on the prompts it is given and nothing is tuned on them; `flips_upper` bounds the share of
divergent tokens on fresh prompts of the same kind with 95 % confidence; the numeric noise floor is measured the same way
and reported first, since no model can be told from its original below it. Price: 1,000 resamplings of a few hundred numbers.
Source: arXiv 2311.01544 for the metrics; the bootstrap over prompts (tokens of one prompt are not independent); Clopper and
Pearson's bound at the effective sample size, which still says something when no token at all diverged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from train.compress.divergence import Reference, Trace, divergent, first_divergent, survival_quantile

__all__ = ["Noise", "certify", "flips_by_prompt", "flips_upper", "measure_noise", "observed_fdt"]

_RESAMPLES = 1000
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """How far the original differs from itself when only the arithmetic changes."""

    flips: float
    """Share of its tokens that the original itself would have written otherwise in the other arithmetic."""
    decode_flips: float
    """Share of its tokens, written one by one in batches, that its own one-pass reading of them would not have chosen."""
    margin: float
    """Nats: 99 % of the positions move their top-2 margin by less than this in the other arithmetic."""
    kl_mean: float
    arithmetic: str
    """What was compared, such as "bfloat16 against float32"."""


def flips_by_prompt(reference: Reference, traces: Sequence[Trace]) -> list[NDArray[np.bool_]]:
    """Per completion, which tokens are divergent."""
    return [divergent(completion, trace.likeliest) for completion, trace in zip(reference.completions, traces, strict=True)]


def observed_fdt(flips: Sequence[NDArray[np.bool_]]) -> list[tuple[int, bool]]:
    """(FDT, censored) per completion."""
    return [first_divergent(each) for each in flips]


def measure_noise(reference: Reference, other: Sequence[Trace], arithmetic: str) -> Noise:
    """The noise floor, from the original's traces of its own completions in another arithmetic."""
    moved = np.concatenate([np.abs(a.margins - b.margins) for a, b in zip(reference.traces, other, strict=True)])
    return Noise(
        flips=_share(flips_by_prompt(reference, other)),
        decode_flips=_share(flips_by_prompt(reference, reference.traces)),
        margin=float(np.quantile(moved[np.isfinite(moved)], 0.99)) if np.isfinite(moved).any() else 0.0,
        kl_mean=float(np.concatenate([trace.kl for trace in other]).mean()),
        arithmetic=arithmetic,
    )


def flips_upper(flips: Sequence[NDArray[np.bool_]], rng: np.random.Generator) -> float:
    """One-sided 95 % upper bound of the share of divergent tokens: the larger of bootstrap and Clopper–Pearson.

    The latter counts n / d tokens, d >= 1 being the design effect: the variance of the share over prompts in units of what
    independent tokens would have.

    >>> rng = np.random.default_rng(0)
    >>> round(flips_upper([np.zeros(64, bool)] * 50, rng), 5)  # none of 3,200: three in 3,200, the rule of three
    0.00094
    """
    counts, lengths = (np.array([f(each) for each in flips], dtype=np.float64) for f in (np.sum, len))
    total, share = lengths.sum(), counts.sum() / lengths.sum()
    spread = ((counts - share * lengths) ** 2).sum() * len(flips) / max(len(flips) - 1, 1) / total**2
    independent = share * (1 - share) / total
    effect = max(1.0, spread / independent) if independent > 0 else 1.0
    exact = float(beta.ppf(0.95, counts.sum() / effect + 1, (total - counts.sum()) / effect)) if share < 1 else 1.0
    draws = rng.integers(0, len(flips), (_RESAMPLES, len(flips)))
    return max(exact, float(np.quantile(counts[draws].sum(1) / lengths[draws].sum(1), 0.95)))


def certify(
    reference: Reference, traces: Sequence[Trace], noise: Noise, texts: tuple[Sequence[Floats], Sequence[Floats]], *, seed: int
) -> dict[str, Any]:
    """The certificate of a candidate on the reference's prompts.

    `texts`: nats per token of the same held-out texts under the original and under the candidate, for perplexity. Returns the
    figures by name, and under `intervals` two-sided 95 % bootstrap intervals over prompts (texts for perplexity).
    """
    flips = flips_by_prompt(reference, traces)
    base_texts, texts_now = texts
    apart = [trace.margins >= noise.margin for trace in reference.traces]
    rows = list(zip(flips, apart, [trace.kl for trace in traces], observed_fdt(flips), strict=True))
    statistics: dict[str, tuple[Sequence[Any], Callable[[Sequence[Any]], float]]] = {
        "fdt_median": (rows, lambda drawn: survival_quantile([row[3] for row in drawn], 0.5)),
        "fdt_p10": (rows, lambda drawn: survival_quantile([row[3] for row in drawn], 0.1)),
        "flips": (rows, lambda drawn: _share([row[0] for row in drawn])),
        "flips_beyond_noise": (rows, lambda drawn: _share([row[0][row[1]] for row in drawn])),
        "kl_mean": (rows, lambda drawn: float(np.concatenate([row[2] for row in drawn]).mean())),
        "kl_p99": (rows, lambda drawn: float(np.quantile(np.concatenate([row[2] for row in drawn]), 0.99))),
        "perplexity": (texts_now, _perplexity),
        "perplexity_base": (base_texts, _perplexity),
        "completion_perplexity": ([trace.losses for trace in traces], _perplexity),
        "completion_perplexity_base": ([trace.losses for trace in reference.traces], _perplexity),
    }
    rng = np.random.default_rng(seed)
    return {
        "noise_floor": noise.flips,
        **{name: statistic(sample) for name, (sample, statistic) in statistics.items()},
        "flips_upper": flips_upper(flips, rng),
        "diverged": sum(not censored for _, censored in observed_fdt(flips)),
        "num_prompts": len(flips),
        "num_tokens": sum(map(len, flips)),
        "longest": max(map(len, flips)),
        "noise": asdict(noise),
        "intervals": {name: _interval(sample, statistic, rng) for name, (sample, statistic) in statistics.items()},
    }


def _interval(sample: Sequence[Any], statistic: Callable[[Sequence[Any]], float], rng: np.random.Generator) -> list[float]:
    draws = rng.integers(0, len(sample), (_RESAMPLES, len(sample)))
    values = [statistic([sample[index] for index in draw]) for draw in draws]
    return [float(v) for v in np.quantile(values, (0.025, 0.975))]


def _share(flips: Sequence[NDArray[np.bool_]]) -> float:
    total = sum(map(len, flips))
    return sum(int(each.sum()) for each in flips) / total if total else 0.0


def _perplexity(losses: Sequence[Floats]) -> float:
    return float(np.exp(np.concatenate(losses).mean()))
