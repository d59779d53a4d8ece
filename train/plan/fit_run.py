"""`sterna plan fit`: a table of runs -> their law, how sure it is, and how it fared on the largest runs before it had seen them.

Promise: the answer names what it left out, which law it chose and by what error, and counts N as the table does. Price: half a minute
for a few hundred runs, most of it resampling; nothing is trained. Sources: see fit.py, forms.py, extrapolate.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.artifact import Draft, finished, publish
from cluster.console import progress, say
from cluster.storage import content_digest
from train.plan.config import FitConfig
from train.plan.extrapolate import Extrapolation, Predictor, extrapolation, predictor, ranked
from train.plan.fit import Fitted, bootstrap
from train.plan.fit_figures import figures, write_plot
from train.plan.forms import FORMS, KAPLAN, Form
from train.plan.law_file import PREDICTOR, Embeddings, predictor_document
from train.plan.laws import Interval
from train.plan.runs import Floats, Runs, read_runs

__all__ = ["Fits", "LawReport", "fitted_to", "plan_fit", "write_law"]

CONFIDENCE = 0.95
_STAGE = "fit"


@dataclass(frozen=True, slots=True)
class LawReport:
    """What a table of runs says: what `--json` prints, and, in words, what is printed without it."""

    told: Mapping[str, Any]

    def summary(self) -> dict[str, Any]:
        """The whole as JSON."""
        return dict(self.told)

    def __str__(self) -> str:
        counted = {"included": "N includes the embeddings", "excluded": "N is without the embeddings", "unsaid": "N as the table counts it"}
        fitted = self.told["runs"] - len(self.told["outliers"])
        head = [f"L(N, D) = E + A/N^alpha + B/D^beta over {fitted} runs; {counted[self.told['embeddings']]}"]
        rows = [f"{name:>6}  {x['value']:>10.5g}   {x['low']:.5g} to {x['high']:.5g}" for name, x in self.told["law"].items()]
        return "\n".join(head + rows + self._trust() + self._left_out() + self._asked() + self._verified())

    def _trust(self) -> list[str]:
        chosen, found = self.told["chosen"], self.told["extrapolation"]
        if found is None:
            return [f"chosen: {chosen['law']} ({chosen['formula']}); too few runs to hide the largest ones and see"]
        by_error = sorted(found["errors_by_law"].items(), key=lambda item: item[1])
        return [
            f"the {found['runs_hidden']} largest runs, hidden: {found['law']} is off by {100 * found['error']:.2g} % "
            f"(at most {100 * found['largest_error']:.2g} %), its 90 % intervals hold {100 * found['interval_covers']:.0f} % of them",
            "all laws on them: " + ", ".join(f"{name} {100 * error:.2g} %" for name, error in by_error),
            f"chosen for predictions: {chosen['law']} ({chosen['formula']})",
        ]

    def _left_out(self) -> list[str]:
        return [
            f"left out: line {row['line']:.0f}, {row['parameters']:.3g} parameters, {row['tokens']:.3g} tokens: loss {row['loss']:.4g}, "
            f"expected {row['expected']:.4g}"
            for row in self.told["outliers"]
        ]

    def _verified(self) -> list[str]:
        if "verified" not in self.told:
            return []
        found, run = self.told["verified"], self.told["verified"]["run"]
        return [
            f"verified: {run['parameters']:,} parameters on {run['tokens']:,} tokens: predicted {found['predicted']['value']:.4g} "
            f"({found['predicted']['low']:.4g} to {found['predicted']['high']:.4g}), measured {run['loss']:.4g}: {found['error']:+.2%}"
        ]

    def _asked(self) -> list[str]:
        return [
            f"{row['parameters']:.3g} parameters on {row['tokens']:.3g} tokens: loss {row['loss']['value']:.4g} "
            f"({row['loss']['low']:.4g} to {row['loss']['high']:.4g})"
            for row in self.told["predictions"]
        ]


@dataclass(frozen=True, slots=True)
class Fits:
    """What was fitted to a table of runs."""

    runs: Runs
    law: Mapping[str, Interval]
    """E, A, B, alpha, beta of E + A/N^alpha + B/D^beta, with 95 % intervals."""
    parametric: Fitted
    """That law."""
    best: Predictor
    """The law that is chosen for predictions, fitted to everything."""
    others: tuple[Fitted, ...]
    """The laws that were not chosen."""
    beyond: Extrapolation | None

    def told(self, config: FitConfig) -> dict[str, Any]:
        """As JSON has it."""
        chosen = self.best.fitted
        pairs = [FitConfig.pair(text) for text in config.predict]
        return {
            "runs": len(self.runs), "tokens_from": self.runs.tokens_from, "embeddings": config.embeddings,
            "law": {name: interval.table() for name, interval in self.law.items()}, "confidence": CONFIDENCE,
            "objective": self.parametric.objective, "outliers": self._outliers(),
            "chosen": {"law": chosen.form.name, "formula": chosen.form.formula, "stretch": self.best.stretch}
            | chosen.form.table(chosen.theta),
            "laws": {each.form.name: each.form.table(each.theta) for each in (chosen, *self.others)},
            "published": {"kaplan": {name: {"critical": x, "exponent": a} for name, (x, a) in KAPLAN.items()}},
            "extrapolation": self.beyond.table() if self.beyond else None,
            "predictions": [{"parameters": n, "tokens": d, "loss": self.best.interval(n, d).table()} for n, d in pairs],
        } | ({"output": config.output} if config.output else {})  # fmt: skip

    def _outliers(self) -> list[dict[str, float]]:
        """The runs that the parametric law left out, worst first."""
        left = self.runs.subset(self.parametric.outliers)
        expected = self.parametric.loss(left)
        rows = [
            {"line": line, "parameters": float(n), "tokens": float(d), "loss": float(measured), "expected": float(predicted)}
            for line, n, d, measured, predicted in zip(left.lines, left.parameters, left.tokens, left.loss, expected, strict=True)
        ]
        return sorted(rows, key=lambda row: -abs(np.log(row["loss"] / row["expected"])))


def plan_fit(config: FitConfig) -> LawReport:
    """Fit the laws to the table, judge them, and print or write what comes of it.

    Raises ValueError for a table that cannot be read or cannot hold a law.
    """
    if done := _done(config):
        return done
    runs = read_runs(config.runs)
    if config.plot and not Path(config.plot).parent.is_dir():
        raise ValueError(f"plot: {config.plot} cannot be written (no such folder); make the folder, or choose another")
    with _draft(config) as draft:  # before the fit, so that nobody waits for what cannot be written
        made, told = fitted_to(config, runs)
        if config.plot:
            write_plot(config.plot, runs, made.parametric, made.best, made.beyond)
        if draft is not None:
            write_law(draft, made, told, config.embeddings)
    return LawReport(told)


def _draft(config: FitConfig) -> AbstractContextManager[Draft | None]:
    if not config.output:
        return nullcontext()
    return publish(config.output, stage=_STAGE, inputs={"runs": content_digest(config.runs)}, config=config)


def fitted_to(config: FitConfig, runs: Runs) -> tuple[Fits, dict[str, Any]]:
    """(the fits, what there is to tell of them) of a table that has been read."""
    _say_what_is_thin(runs)
    forms = [form for form in FORMS.values() if (form.name == "data_constrained") <= (runs.unique is not None)]
    with progress("fit", 2 * len(forms) + 5 * config.resamples, "fits") as advance:
        made = _fitted(config, runs, forms, advance)
    return made, made.told(config)


def _done(config: FitConfig) -> LawReport | None:
    """What this very fit found before, where it was written and its picture is still there."""
    if not config.output or not Path(config.runs).is_file() or (config.plot and not Path(config.plot).is_file()):
        return None
    done = finished(config.output, stage=_STAGE, inputs={"runs": content_digest(config.runs)}, config=config)
    if done is None:
        return None
    say(f"{config.output}: already done")
    return LawReport(json.loads((done.local() / "law.json").read_text(encoding="utf-8")) | {"output": config.output})


def _fitted(config: FitConfig, runs: Runs, forms: list[Form], advance: Callable[[int], None]) -> Fits:
    draws, seed, sigmas = config.resamples, config.seed, config.outlier_sigmas
    laws = [fitted for _, fitted in ranked(forms, runs, advance, outlier_sigmas=sigmas)]
    parametric = next(fitted for fitted in laws if fitted.form.name == "chinchilla")
    thetas = bootstrap(parametric, draws, seed=seed, advance=advance)
    beyond = extrapolation(forms, runs, draws=draws, seed=seed, advance=advance, outlier_sigmas=sigmas)
    known = thetas if laws[0] is parametric else None
    best = predictor(laws[0], runs, draws=draws, seed=seed, advance=advance, outlier_sigmas=sigmas, thetas=known)
    return Fits(runs, _intervals(parametric, thetas), parametric, best, tuple(laws[1:]), beyond)


def _intervals(fitted: Fitted, draws: Floats) -> dict[str, Interval]:
    """95 % bootstrap intervals of the coefficients, in the order in which people write them."""
    values = np.array([fitted.form.values(theta) for theta in draws])
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    at = dict(zip(fitted.form.coefficients, zip(fitted.form.values(fitted.theta), low, high, strict=True), strict=True))
    found = {name: tuple(map(float, at[name])) for name in ("E", "A", "B", "alpha", "beta")}
    return {name: Interval(value, min(value, lower), max(value, upper)) for name, (value, lower, upper) in found.items()}


def _say_what_is_thin(runs: Runs) -> None:
    """Warn where the table cannot tell the law's terms apart."""
    for what in runs.thin:
        spread = float(np.exp(np.ptp(np.log(getattr(runs, what)))))
        say(f"{what} differ by a factor of {spread:.2g} only: what the law says of them is hardly more than a guess")
    if runs.along_a_line:
        say("parameters and tokens change together: the law cannot tell their terms apart, and holds for runs of that proportion only")


def write_law(draft: Draft, made: Fits, told: Mapping[str, Any], embeddings: Embeddings) -> None:
    """Into a stage's folder: law.json, the law as the planner reads it, and the manifest's counts, metrics and figures."""
    (draft.dir / "law.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    (draft.dir / PREDICTOR).write_text(json.dumps(predictor_document(made.best, made.runs, embeddings)), encoding="utf-8")
    draft.counts = {"runs_in": len(made.runs), "fitted": len(made.parametric.runs), "left_out": len(made.parametric.outliers)}
    draft.metrics = {key: value for key, value in told.items() if key in ("law", "chosen", "extrapolation", "predictions")}
    draft.figures = figures(made.runs, made.parametric, made.best, made.beyond)
    law = {name: f"{interval.value:.4g}" for name, interval in made.law.items()}
    error = f"; {100 * made.beyond.table()['error']:.2g} % off on the largest runs, hidden" if made.beyond else ""
    draft.headline = f"L = {law['E']} + {law['A']}/N^{law['alpha']} + {law['B']}/D^{law['beta']}{error}"
