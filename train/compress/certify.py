"""The certificate: what compression did to the tokens on prompts that nothing else has seen, with intervals and the noise.

Promise: every figure is measured on the prompts it is given and nothing is tuned on them; `flips_upper` (`kl_upper`) bounds the
share of divergent tokens (the mean KL) on fresh prompts of the same kind with 95 % confidence, and a budget is kept when
the bound is within it. Price: 1,000 resamplings of a few hundred numbers.
Source: arXiv 2311.01544 for the metrics; the bootstrap over prompts (tokens of one prompt are not independent); Clopper and
Pearson's bound at the effective sample size, which still says something when no token at all diverged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta
from scipy.stats import t as student

from train.compress.divergence import Reference, Trace, first_divergent, survival_quantile
from train.compress.noise import Noise, flips_by_prompt, share

__all__ = ["certify", "flips_upper", "judge_budget", "kl_upper", "least_flips_upper", "observed_fdt", "upper_bounds"]

_RESAMPLES = 1000
Floats = NDArray[np.float64]


def observed_fdt(flips: Sequence[NDArray[np.bool_]]) -> list[tuple[int, bool]]:
    """(FDT, censored) per completion."""
    return [first_divergent(each) for each in flips]


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


def least_flips_upper(num_tokens: int) -> float:
    """The smallest bound that so many tokens can show, when none of them diverges.

    >>> round(least_flips_upper(3200), 5)
    0.00094
    """
    return float(1 - 0.05 ** (1 / num_tokens))


def kl_upper(kl: Sequence[Floats], rng: np.random.Generator) -> float:
    """One-sided 95 % upper bound of the mean KL over tokens: the larger of bootstrap and Student's t over prompts.

    >>> round(kl_upper([np.full(8, 0.01), np.full(8, 0.03)] * 10, np.random.default_rng(0)), 3)
    0.024
    """
    sums, lengths = (np.array([f(each) for each in kl], dtype=np.float64) for f in (np.sum, len))
    total, mean, size = lengths.sum(), sums.sum() / lengths.sum(), len(kl)
    spread = ((sums - mean * lengths) ** 2).sum() * size / max(size - 1, 1) / total**2
    draws = rng.integers(0, size, (_RESAMPLES, size))
    return max(mean + float(student.ppf(0.95, max(size - 1, 1))) * spread**0.5,
               float(np.quantile(sums[draws].sum(1) / lengths[draws].sum(1), 0.95)))  # fmt: skip


def upper_bounds(reference: Reference, traces: Sequence[Trace], seed: int) -> dict[str, float]:
    """`flips_upper` and `kl_upper` of a candidate on the reference's prompts."""
    rng = np.random.default_rng(seed)
    return {
        "flips_upper": flips_upper(flips_by_prompt(reference, traces), rng),
        "kl_upper": kl_upper([trace.kl for trace in traces], rng),
    }


def judge_budget(certificate: Mapping[str, Any], bounds: Mapping[str, float]) -> bool:
    """Whether the certificate keeps to a budget: each bounded metric's one-sided 95 % upper bound is within it."""
    return all(certificate[f"{metric}_upper"] <= bound for metric, bound in bounds.items())


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
        "flips": (rows, lambda drawn: share([row[0] for row in drawn])),
        "flips_beyond_noise": (rows, lambda drawn: share([row[0][row[1]] for row in drawn])),
        "kl_mean": (rows, lambda drawn: float(np.concatenate([row[2] for row in drawn]).mean())),
        "kl_p99": (rows, lambda drawn: float(np.quantile(np.concatenate([row[2] for row in drawn]), 0.99))),
        "perplexity": (texts_now, _perplexity),
        "perplexity_base": (base_texts, _perplexity),
        "completion_perplexity": ([trace.losses for trace in traces], _perplexity),
        "completion_perplexity_base": ([trace.losses for trace in reference.traces], _perplexity),
    }
    rng = np.random.default_rng(seed)
    return {
        "noise_floor": noise.floor,
        **{name: statistic(sample) for name, (sample, statistic) in statistics.items()},
        **upper_bounds(reference, traces, seed),
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


def _perplexity(losses: Sequence[Floats]) -> float:
    return float(np.exp(np.concatenate(losses).mean()))
