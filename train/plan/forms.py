"""The forms that a law of loss can have, each as log L and its gradient in free coefficients.

Promise: a form is a smooth function of unbounded coefficients θ (logarithms where a coefficient must be positive), so that any optimizer
can walk in it. Price: one pass over the runs. Sources: Hoffmann et al. 2022 (E + A/N^α + B/D^β, in the log-sum-exp shape of their
appendix D.3), Kaplan et al. 2020 (equations 1.1, 1.2 and 1.5), Muennighoff et al. 2023 (repeated data, equation 5, α = β there).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import cast

import numpy as np
from numpy.typing import ArrayLike

from train.plan.laws import LossLaw, Repetition, worth
from train.plan.runs import Floats, Runs

__all__ = ["FORMS", "KAPLAN", "Form", "as_law"]

Evaluate = Callable[[Floats, Runs], tuple[Floats, Floats]]


@dataclass(frozen=True, slots=True)
class Form:
    """A family of laws with k coefficients."""

    name: str
    formula: str
    coefficients: tuple[str, ...]
    """Names of what `values` gives."""
    evaluate: Evaluate
    """(θ [k], runs of n) -> (log L [n], its gradient [n, k])."""
    values: Callable[[Floats], Floats]
    """θ [k] -> the coefficients as people write them."""
    starts: Callable[[Runs], Floats]
    """Where to start from: θ [m, k]."""
    ignores: str = ""
    """`parameters` or `tokens`, if the law has no term of them."""

    def log_loss(self, theta: Floats, runs: Runs) -> Floats:
        """log L of each run, [n]."""
        return self.evaluate(theta, runs)[0]

    def table(self, theta: Floats) -> dict[str, float]:
        """Coefficients by name."""
        return dict(zip(self.coefficients, map(float, self.values(theta)), strict=True))


def _grid(*axes: ArrayLike) -> Floats:
    return np.array(list(product(*(np.atleast_1d(np.asarray(axis, dtype=np.float64)) for axis in axes))))


def _terms(log_terms: Floats) -> tuple[Floats, Floats]:
    """(log Σ exp, each term's share of the sum) of terms [t, n]."""
    most = log_terms.max(axis=0)
    parts = np.exp(log_terms - most)
    total = parts.sum(axis=0)
    return cast(Floats, most + np.log(total)), parts / total


def _additive(theta: Floats, runs: Runs) -> tuple[Floats, Floats]:
    a, b, e, alpha, beta = theta
    n, d = np.log(runs.parameters), np.log(runs.tokens)
    log_loss, share = _terms(np.stack([a - alpha * n, b - beta * d, np.full_like(n, e)]))
    return log_loss, np.stack([share[0], share[1], share[2], -share[0] * n, -share[1] * d], axis=1)


def _additive_starts(runs: Runs) -> Floats:
    """Exponents by their size; A and B so that each term is a share of the loss at the middle run; E a share of the least loss."""
    n, d, least = np.median(np.log(runs.parameters)), np.median(np.log(runs.tokens)), np.log(runs.loss.min())
    grid = _grid(np.log([0.05, 0.2, 0.6]), np.log([0.05, 0.2, 0.6]), np.log([0.05, 0.5, 0.9]), [0.15, 0.35, 0.7], [0.15, 0.35, 0.7])
    middle = np.log(np.median(runs.loss))
    a, b, e, alpha, beta = grid.T
    return np.stack([a + middle + alpha * n, b + middle + beta * d, e + least, alpha, beta], axis=1)


def _same_exponent(theta: Floats, runs: Runs) -> tuple[Floats, Floats]:
    log_loss, gradient = _additive(np.append(theta, theta[3]), runs)
    return log_loss, np.concatenate([gradient[:, :3], gradient[:, 3:4] + gradient[:, 4:5]], axis=1)


def _same_exponent_starts(runs: Runs) -> Floats:
    starts = _additive_starts(runs)
    return cast(Floats, starts[starts[:, 3] == starts[:, 4]][:, :4])


def _kaplan(theta: Floats, runs: Runs) -> tuple[Floats, Floats]:
    """log L = α_D · log((N_c/N)^(α_N/α_D) + D_c/D); θ = log N_c, log D_c, log α_N, log α_D."""
    nc, dc = theta[:2]
    alpha_n, alpha_d = np.exp(np.clip(theta[2:], -12, 4))
    n, d = nc - np.log(runs.parameters), dc - np.log(runs.tokens)
    ratio = alpha_n / alpha_d
    total, share = _terms(np.stack([ratio * n, d]))
    gradient = [alpha_n * share[0], alpha_d * share[1], alpha_n * share[0] * n, alpha_d * total - alpha_n * share[0] * n]
    return alpha_d * total, np.stack(gradient, axis=1)


def _kaplan_starts(runs: Runs) -> Floats:
    """Critical sizes from the smallest to far beyond the largest run, exponents around the published ones."""
    n, d = np.log(runs.parameters), np.log(runs.tokens)
    return _grid(
        n.max() + np.array([0.0, 6.0, 14.0]), d.max() + np.array([0.0, 6.0, 14.0]), np.log([0.05, 0.1, 0.3]), np.log([0.05, 0.1, 0.3])
    )


def _power(of: Callable[[Runs], Floats]) -> tuple[Evaluate, Callable[[Runs], Floats]]:
    """L = (X_c / X)^α; θ = log X_c, log α."""

    def evaluate(theta: Floats, runs: Runs) -> tuple[Floats, Floats]:
        alpha = float(np.exp(np.clip(theta[1], -12, 4)))
        gap = theta[0] - np.log(of(runs))
        return alpha * gap, np.stack([np.full_like(gap, alpha), alpha * gap], axis=1)

    def starts(runs: Runs) -> Floats:
        return _grid(np.log(of(runs)).max() + np.array([2.0, 8.0, 14.0]), np.log([0.03, 0.08, 0.2]))

    return evaluate, starts


def _repeated(theta: Floats, runs: Runs) -> tuple[Floats, Floats]:
    """The data-constrained law; its gradient by central differences, since the useful size is itself a function of the law."""
    log_loss = _repeated_log_loss(theta, runs)
    step = 1e-6
    gradient = [
        (_repeated_log_loss(theta + step * unit, runs) - _repeated_log_loss(theta - step * unit, runs)) / (2 * step)
        for unit in np.eye(len(theta))
    ]
    return log_loss, np.stack(gradient, axis=1)


def _repeated_log_loss(theta: Floats, runs: Runs) -> Floats:
    a, b, e, exponent, log_data, log_size = theta
    unique = runs.tokens if runs.unique is None else runs.unique
    worth_data, worth_size = np.exp(np.clip([log_data, log_size], -12, 12))
    useful = np.minimum(runs.parameters, np.exp((a - b) / exponent) * unique)  # αA/N^α = βB/D^β with α = β
    n = np.log(worth(runs.parameters, useful, worth_size))
    d = np.log(worth(runs.tokens, unique, worth_data))
    return _terms(np.stack([a - exponent * n, b - exponent * d, np.full_like(n, e)]))[0]


def _repeated_starts(runs: Runs) -> Floats:
    starts = _same_exponent_starts(runs)
    tails = _grid(np.log([3.0, 15.0, 60.0]), np.log([5.0]))
    return np.concatenate([np.concatenate([starts, np.tile(tail, (len(starts), 1))], axis=1) for tail in tails])


def _exp(theta: Floats) -> Floats:
    """e^θ, finite also where a table that says nothing of a coefficient has let it run away."""
    return cast(Floats, np.exp(np.clip(theta, -700, 700)))


def _exp_first_three(theta: Floats) -> Floats:
    return np.concatenate([_exp(theta[:3]), theta[3:]])


_of_size, _of_size_starts = _power(lambda runs: runs.parameters)
_of_data, _of_data_starts = _power(lambda runs: runs.tokens)

FORMS: Mapping[str, Form] = {
    form.name: form
    for form in (
        Form("chinchilla", "E + A/N^alpha + B/D^beta", ("A", "B", "E", "alpha", "beta"), _additive, _exp_first_three, _additive_starts),
        Form("one_exponent", "E + A/N^alpha + B/D^alpha", ("A", "B", "E", "alpha"),
             _same_exponent, _exp_first_three, _same_exponent_starts),
        Form("kaplan", "((Nc/N)^(alphaN/alphaD) + Dc/D)^alphaD", ("Nc", "Dc", "alphaN", "alphaD"), _kaplan, _exp, _kaplan_starts),
        Form("kaplan_parameters", "(Nc/N)^alphaN", ("Nc", "alphaN"), _of_size, _exp, _of_size_starts, "tokens"),
        Form("kaplan_tokens", "(Dc/D)^alphaD", ("Dc", "alphaD"), _of_data, _exp, _of_data_starts, "parameters"),
        Form("data_constrained", "E + A/N'^alpha + B/D'^alpha", ("A", "B", "E", "alpha", "Rd", "Rn"), _repeated,
             lambda theta: np.concatenate([_exp(theta[:3]), theta[3:4], _exp(theta[4:])]), _repeated_starts),
    )
}  # fmt: skip
"""Name -> form; N' and D' are what repeated tokens and surplus parameters are worth."""

KAPLAN: Mapping[str, tuple[float, float]] = {"parameters": (8.8e13, 0.076), "tokens": (5.4e13, 0.095), "petaflop_days": (3.1e8, 0.050)}
"""Kaplan et al. 2020, equations 1.1 to 1.3: L = (critical / X)^exponent when nothing else limits; N there without embeddings."""


def as_law(
    form: Form, theta: Floats, *, bytes_per_token: float = 4.0, zstd_bits_per_byte: float = 2.68
) -> tuple[LossLaw, Repetition | None]:
    """The planner's law from fitted coefficients of an additive form; AssertionError for the others."""
    found = form.table(theta)
    assert "E" in found, f"{form.name} has no irreducible loss"
    law = LossLaw(
        E=found["E"], A=found["A"], alpha=found["alpha"], B=found["B"], beta=found.get("beta", found["alpha"]),
        bytes_per_token=bytes_per_token, zstd_bits_per_byte=zstd_bits_per_byte,
    )  # fmt: skip
    return law, Repetition(data=found["Rd"], parameters=found["Rn"]) if "Rd" in found else None
