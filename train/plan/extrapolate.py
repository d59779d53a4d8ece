"""How far a law can be trusted beyond its runs: hidden runs of the largest compute, the choice between laws, prediction intervals.

Promise: every error stated is of runs that the law did not see. A law is chosen by its error on hidden runs *within* the runs that it may
see, then judged on the others; a prediction interval holds the coefficients' uncertainty (bootstrap), the scatter of single runs
(residuals, widened by Student's quantile where they are few) and what the hidden runs within showed to be missing (its half-width is
stretched until it would have held nine in ten). Price: each form is fitted three times, the chosen one resampled twice. Source: hold-out
extrapolation as in Hoffmann et al. 2022 and Muennighoff et al. 2023; stretching an interval on held-back data is split conformal
prediction (Papadopoulos et al. 2002).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from train.plan.fit import OUTLIER_SIGMAS, Fitted, bootstrap, fit
from train.plan.forms import Form
from train.plan.laws import Interval
from train.plan.runs import Floats, Runs

__all__ = ["Extrapolation", "Predictor", "extrapolation", "hidden_runs", "predictor", "ranked"]

SHARE_OF_COMPUTE = 0.1
"""Runs above this share of the largest compute are hidden."""
COVERAGE = 0.90
ALIKE = 1.2
"""Times the least error of a law on hidden runs, up to which another is as good."""
_LEAST_SEEN = 6
_SHARES = (SHARE_OF_COMPUTE, 0.2, 0.35, 0.5, 0.75)  # where a tenth leaves too few to fit to


@dataclass(frozen=True, slots=True)
class Predictor:
    """A fitted law that says how sure it is."""

    fitted: Fitted
    thetas: Floats
    """Coefficients of resamples, [m, k]."""
    stretch: float = 1.0
    """Of the interval's log half-widths, at least 1."""
    seed: int = 0

    def predict(self, runs: Runs) -> tuple[Floats, Floats, Floats]:
        """(loss, low, high) of each run, [n] each: the range that should hold a new run's loss nine times out of ten."""
        value = self.fitted.form.log_loss(self.fitted.theta, runs)
        draws = np.stack([self.fitted.form.log_loss(theta, runs) for theta in self.thetas])
        generator = np.random.default_rng(self.seed)
        freedom = len(self.fitted.residuals) / max(1, len(self.fitted.residuals) - len(self.fitted.theta))
        scatter = generator.choice(self.fitted.residuals, (len(draws), 8, 1)) * np.sqrt(freedom)
        spread = (draws[:, None, :] - value) + scatter
        low, high = np.quantile(spread.reshape(-1, len(runs)), [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], axis=0)
        wider = self.stretch * self._few()
        return tuple(np.exp(value + bound) for bound in (0, np.minimum(wider * low, 0), np.maximum(wider * high, 0)))  # type: ignore[return-value]

    def _few(self) -> float:
        """How much wider Student's interval is than the normal one: few runs say little of how far they scatter."""
        freedom = max(1, len(self.fitted.residuals) - len(self.fitted.theta))
        return float(stdtrit(freedom, (1 + COVERAGE) / 2) / ndtri((1 + COVERAGE) / 2))

    def interval(self, parameters: float, tokens: float, unique: float | None = None) -> Interval:
        """The predicted loss of one run."""
        one = Runs(np.array([parameters]), np.array([tokens]), np.ones(1), None if unique is None else np.array([unique]))
        value, low, high = (float(bound[0]) for bound in self.predict(one))
        return Interval(value, low, high)


@dataclass(frozen=True, slots=True)
class Extrapolation:
    """What the laws made of the largest runs without having seen them."""

    share: float
    """Runs above this share of the largest compute were hidden."""
    seen: int
    hidden: NDArray[np.int64]
    """Places of the hidden runs in the table."""
    law: str
    """Chosen within the runs that were seen."""
    errors: Mapping[str, Floats]
    """Form -> predicted / measured - 1 of each hidden run."""
    low: Floats
    high: Floats
    covered: float
    """Share of the hidden runs inside the chosen law's interval."""

    def table(self) -> dict[str, Any]:
        """As JSON has it; errors are shares of the measured loss."""
        chosen = self.errors[self.law]
        return {
            "hidden_above_share_of_compute": self.share, "runs_seen": self.seen, "runs_hidden": len(self.hidden), "law": self.law,
            "error": float(np.abs(chosen).mean()), "bias": float(chosen.mean()), "largest_error": float(np.abs(chosen).max()),
            "within_2_percent": float((np.abs(chosen) <= 0.02).mean()), "interval_covers": self.covered,
            "errors_by_law": {name: float(np.abs(error).mean()) for name, error in self.errors.items()},
        }  # fmt: skip


def hidden_runs(runs: Runs, least_seen: int = _LEAST_SEEN) -> tuple[float, NDArray[np.bool_]] | None:
    """(share, mask of the runs above it): a tenth of the largest compute, or more where too few would be seen; None if none can be."""
    for share in _SHARES:
        hidden = runs.flops > share * runs.flops.max()
        if (~hidden).sum() >= least_seen and hidden.any():
            return share, hidden
    return None


def ranked(
    forms: Sequence[Form], runs: Runs, advance: Callable[[int], None] = lambda _: None, *, outlier_sigmas: float = OUTLIER_SIGMAS
) -> list[tuple[float, Fitted]]:
    """The forms fitted to the runs, best first: by their error on hidden runs among them, or, with too few to hide any, by their residuals.

    A form needs more runs than it has coefficients, and one that ignores what the runs vary comes last, however well it did by chance.
    Residuals of few runs cannot tell whether losses level off, and the cautious guess is that they do: there laws with an irreducible
    loss come first. The error of each is a mean |log|; of forms whose errors are alike, which with a dozen runs is a matter of chance, that
    comes first which follows all runs best.
    """
    split = hidden_runs(runs, least_seen=max(_LEAST_SEEN, 1 + min(len(form.coefficients) for form in forms)))
    found: list[tuple[float, Fitted]] = []
    residuals = {}
    for form in forms:
        whole = fit(form, runs, outlier_sigmas=outlier_sigmas)
        error = float(np.abs(whole.residuals).mean() * len(runs) / max(1, len(runs) - len(form.coefficients)))
        residuals[form.name] = error
        if split is not None:
            seen, hidden = runs.subset(~split[1]), runs.subset(split[1])
            error = np.inf
            if len(seen) > len(form.coefficients):
                error = float(np.abs(np.log(fit(form, seen, outlier_sigmas=outlier_sigmas).loss(hidden) / hidden.loss)).mean())
        found.append((error, whole))
        advance(1)
    demoted = {form.name: _demoted(form, runs, hidden=split is not None) for form in forms}
    found.sort(key=lambda pair: (demoted[pair[1].form.name], pair[0]))
    least, best = found[0]
    alike = [(error, law) for error, law in found if demoted[law.form.name] == demoted[best.form.name] and error <= ALIKE * least]
    first = min(alike, key=lambda pair: residuals[pair[1].form.name])
    return [first, *(pair for pair in found if pair[1] is not first[1])]


def _demoted(form: Form, runs: Runs, *, hidden: bool) -> tuple[bool, bool]:
    """What goes before errors: whether it misses something, and, where no run could be hidden, whether it takes losses to fall for ever."""
    return _misses(form, runs), not hidden and "E" not in form.coefficients


def _misses(form: Form, runs: Runs) -> bool:
    """Whether the law has no term of something that the runs vary by itself."""
    return bool(form.ignores) and form.ignores not in runs.thin and not runs.along_a_line


def predictor(
    fitted: Fitted,
    runs: Runs,
    *,
    draws: int,
    seed: int = 0,
    advance: Callable[[int], None] = lambda _: None,
    outlier_sigmas: float = OUTLIER_SIGMAS,
    thetas: Floats | None = None,
) -> Predictor:
    """The law with its intervals, stretched by what hidden runs among `runs` ask for; `thetas`: its resamples, where they are there."""
    made = Predictor(fitted, bootstrap(fitted, draws, seed=seed, advance=advance) if thetas is None else thetas, seed=seed)
    split = hidden_runs(runs, least_seen=len(fitted.form.coefficients) + 1)
    if split is None:
        return made
    seen, hidden = runs.subset(~split[1]), runs.subset(split[1])
    inner = fit(fitted.form, seen, start=fitted.theta, outlier_sigmas=outlier_sigmas)
    value, low, high = Predictor(inner, bootstrap(inner, draws, seed=seed, advance=advance), seed=seed).predict(hidden)
    gap = np.log(hidden.loss / value)
    needed = np.maximum(gap / np.maximum(np.log(high / value), 1e-9), gap / np.minimum(np.log(low / value), -1e-9))
    return replace(made, stretch=_stretch(needed))


def _stretch(needed: Floats) -> float:
    """What holds nine in ten of a run yet to come, where those hidden within needed so much each: of few, the most that any needed.

    >>> _stretch(np.array([0.5, 1.2, 3.0]))
    3.0
    """
    return float(max(1.0, np.quantile(needed, min(1.0, COVERAGE * (1 + 1 / len(needed))))))


def extrapolation(
    forms: Sequence[Form],
    runs: Runs,
    *,
    draws: int,
    seed: int = 0,
    advance: Callable[[int], None] = lambda _: None,
    outlier_sigmas: float = OUTLIER_SIGMAS,
) -> Extrapolation | None:
    """Hide the largest runs, choose and fit on the others, and see; None where there are too few runs to hide any."""
    split = hidden_runs(runs, least_seen=max(_LEAST_SEEN, 1 + min(len(form.coefficients) for form in forms)))
    if split is None:
        return None
    share, mask = split
    seen, hidden = runs.subset(~mask), runs.subset(mask)
    found = ranked([form for form in forms if len(form.coefficients) < len(seen)], seen, advance, outlier_sigmas=outlier_sigmas)
    errors = {fitted.form.name: fitted.loss(hidden) / hidden.loss - 1 for _, fitted in found}
    best = found[0][1]
    made = predictor(best, seen, draws=draws, seed=seed, advance=advance, outlier_sigmas=outlier_sigmas)
    _, low, high = made.predict(hidden)
    covered = float(((hidden.loss >= low) & (hidden.loss <= high)).mean())
    return Extrapolation(share, len(seen), np.flatnonzero(mask), best.form.name, errors, low, high, covered)
