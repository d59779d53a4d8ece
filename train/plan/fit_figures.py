"""What a fit looks like: predicted against measured, the frontier of compute, the residuals and the hidden runs.

Promise: the same four pictures in the report (as figure data) and in a file of one's own (`--plot`). Price: matplotlib for the file.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cluster.figure import Figure, lines
from cluster.plot import picture
from train.plan.extrapolate import Extrapolation, Predictor
from train.plan.fit import Fitted
from train.plan.runs import FLOPS_PER_PARAMETER_AND_TOKEN, Floats, Runs

__all__ = ["figures", "frontier", "write_plot"]

_BEYOND = 30.0  # the frontier is drawn to so many times the largest compute


def frontier(fitted: Fitted, flops: Floats) -> tuple[Floats, Floats]:
    """(best parameters, loss) for each training compute C = 6·N·D, of a law fitted to no repeated tokens; [n] each.

    Found on a grid of 400 sizes, from a ten-thousandth to all of √(C/6) times a hundred.
    """
    middle = np.sqrt(flops / FLOPS_PER_PARAMETER_AND_TOKEN)
    factors = np.geomspace(1e-3, 1e2, 400)
    sizes = middle[:, None] * factors
    tokens = flops[:, None] / FLOPS_PER_PARAMETER_AND_TOKEN / sizes
    loss = fitted.loss(Runs(sizes.ravel(), tokens.ravel(), np.ones(sizes.size))).reshape(sizes.shape)
    best = loss.argmin(axis=1)
    at = np.arange(len(flops))
    return sizes[at, best], loss[at, best]


def figures(runs: Runs, parametric: Fitted, best: Predictor, beyond: Extrapolation | None) -> dict[str, Figure]:
    """Figure data for the report."""
    fitted = parametric.runs
    compute = np.geomspace(runs.flops.min(), _BEYOND * runs.flops.max(), 60)
    sizes, loss = frontier(best.fitted, compute)
    ends = [float(fitted.loss.min()), float(fitted.loss.max())]
    made = {
        "fit": lines(
            "Predicted and measured loss", "measured", "predicted",
            {"runs": (fitted.loss.tolist(), parametric.loss(fitted).tolist()), "equal": (ends, ends)}, dots=("runs",),
        ),
        "frontier": lines(
            "Loss by compute", "FLOPs (6 N D)", "loss",
            {"runs": (runs.flops.tolist(), runs.loss.tolist()), "best model of each compute": (compute.tolist(), loss.tolist())},
            log_x=True, dots=("runs",),
        ),
        "sizes": lines(
            "Best size by compute", "FLOPs (6 N D)", "log10 of parameters",
            {"best": (compute.tolist(), np.log10(sizes).tolist())}, log_x=True,
        ),
        "residuals": lines(
            "Residuals", "FLOPs (6 N D)", "measured / predicted - 1, %",
            {"runs": (fitted.flops.tolist(), (100 * np.expm1(parametric.residuals)).tolist())}, log_x=True, dots=("runs",),
        ),
    }  # fmt: skip
    if beyond is not None:
        errors = {name: (runs.flops[beyond.hidden].tolist(), (100 * error).tolist()) for name, error in beyond.errors.items()}
        made["hidden"] = lines(
            "The largest runs, predicted without them",
            "FLOPs (6 N D)",
            "predicted / measured - 1, %",
            errors,
            log_x=True,
            dots=tuple(errors),
        )
    return made


def write_plot(path: str, runs: Runs, parametric: Fitted, best: Predictor, beyond: Extrapolation | None) -> None:
    """The same as one picture; ValueError where it cannot be written."""
    found = [figure for name, figure in figures(runs, parametric, best, beyond).items() if name != "sizes"]
    with picture(path, 2, 2, figsize=(11, 7.5), layout="constrained") as (_, axes):
        for each, figure in zip(axes.flat, found, strict=False):
            _draw(each, figure)
        for each in axes.flat[len(found) :]:
            each.set_visible(False)


def _draw(axes: Any, figure: Figure) -> None:
    for curve in figure["series"]:
        dots = curve["name"] in figure["dots"]
        axes.plot(curve["x"], curve["y"], label=curve["name"], lw=0 if dots else 1.5, marker="o" if dots else None, ms=3)
    axes.set(title=figure["title"], xlabel=figure["x"], ylabel=figure["y"], xscale="log" if figure["log_x"] else "linear")
    if len(figure["series"]) > 1:
        axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
