"""Fitting a law to runs: robust, from many starts, with its outliers named and its uncertainty resampled.

Promise: the least Σ Huber(log predicted - log measured) that L-BFGS finds from a grid of starts (summed, not averaged: a mean lets the
optimizer stop early, which is how a published fit went wrong); the same runs and seed give the same answer. A run is an outlier when
its residual is beyond `outlier_sigmas` robust deviations: Huber's loss already bounds what a point can pull, so only errors of the
record are dropped, and they are named. Price: some seconds for a few hundred runs and resamples.
Sources: Hoffmann et al. 2022, appendix D.3 (Huber's δ = 10^-3 on logs, L-BFGS); Besiroglu et al. 2024 (sum, outliers, bootstrap).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from train.plan.forms import Form
from train.plan.runs import Floats, Runs

__all__ = ["Fitted", "bootstrap", "fit"]

DELTA = 1e-3
OUTLIER_SIGMAS = 12.0
_BEST_STARTS = 12  # of the grid, by their objective, are walked from
_POLISHES = 4  # L-BFGS stops early where Huber's loss is nearly a kink; from beside its answer it goes on
_MAD = 1.4826  # median absolute deviation -> standard deviation of a normal


@dataclass(frozen=True, slots=True)
class Fitted:
    """A law that was fitted."""

    form: Form
    theta: Floats
    """Its free coefficients, [k]."""
    runs: Runs
    """What it was fitted to, outliers left out: n runs."""
    residuals: Floats
    """log measured - log predicted of those, [n]."""
    outliers: NDArray[np.int64]
    """Places, in the runs that were given, of those left out."""
    objective: float
    """Σ Huber at θ."""

    def loss(self, runs: Runs) -> Floats:
        """Predicted loss of each run, [n]."""
        return cast(Floats, np.exp(self.form.log_loss(self.theta, runs)))


def fit(form: Form, runs: Runs, *, outlier_sigmas: float = OUTLIER_SIGMAS, delta: float = DELTA, start: Floats | None = None) -> Fitted:
    """The law of this form that the runs follow best; from `start` alone where it is given, else from the form's grid."""
    kept = np.ones(len(runs), dtype=bool)
    theta, objective = _minimise(form, runs, _first(form, runs, delta) if start is None else start[None], delta)
    for _ in range(len(runs)):
        residuals = np.log(runs.loss) - form.log_loss(theta, runs)
        centre = np.median(residuals[kept])
        sigma = _MAD * np.median(np.abs(residuals[kept] - centre))
        inside = np.abs(residuals - centre) <= max(outlier_sigmas * sigma, 1e-6)
        if (inside == kept).all() or inside.sum() < max(len(theta) + 1, 0.8 * len(runs)):
            break
        kept = inside
        theta, objective = _minimise(form, runs.subset(kept), theta[None], delta)
    inliers = runs.subset(kept)
    return Fitted(form, theta, inliers, np.log(inliers.loss) - form.log_loss(theta, inliers), np.flatnonzero(~kept), objective)


def bootstrap(
    fitted: Fitted, draws: int, *, seed: int = 0, delta: float = DELTA, advance: Callable[[int], None] = lambda _: None
) -> Floats:
    """θ of `draws` resamples of the runs with replacement, [draws, k]; each is walked to from the fit and from beside it."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        sample = fitted.runs.subset(generator.integers(0, len(fitted.runs), len(fitted.runs)))
        found.append(_minimise(fitted.form, sample, fitted.theta[None], delta, polishes=1)[0])
        advance(1)
    return np.array(found)


def _first(form: Form, runs: Runs, delta: float) -> Floats:
    """The best starts of the grid."""
    starts = form.starts(runs)
    target = np.log(runs.loss)
    values = np.array([_huber(form.log_loss(theta, runs) - target, delta)[0] for theta in starts])
    return starts[np.argsort(values, kind="stable")[:_BEST_STARTS]]


def _minimise(form: Form, runs: Runs, starts: Floats, delta: float, *, polishes: int = _POLISHES) -> tuple[Floats, float]:
    target = np.log(runs.loss)

    def objective(theta: Floats) -> tuple[float, Floats]:
        log_loss, gradient = form.evaluate(theta, runs)
        value, slope = _huber(log_loss - target, delta)
        return value, slope @ gradient

    def walk(theta: Floats) -> tuple[float, Floats]:
        with np.errstate(over="ignore", invalid="ignore"):
            found = minimize(objective, theta, jac=True, method="L-BFGS-B", options={"maxiter": 3000, "ftol": 1e-15, "gtol": 1e-9})
        return (float(found.fun) if np.isfinite(found.fun) else np.inf), found.x

    value, theta = min((walk(start) for start in starts), key=lambda found: found[0])
    beside = np.random.default_rng(0)  # of the walk, not of the data: always the same
    for _ in range(polishes):
        again, moved = walk(theta * (1 + 0.02 * beside.standard_normal(len(theta))))
        if again < value:
            value, theta = again, moved
    return theta, value


def _huber(residuals: Floats, delta: float) -> tuple[float, Floats]:
    """(Σ Huber, its slope at each residual)."""
    size = np.abs(residuals)
    return float(np.where(size <= delta, residuals**2 / 2, delta * (size - delta / 2)).sum()), np.clip(residuals, -delta, delta)
