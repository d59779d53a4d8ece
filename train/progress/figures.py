"""A run's plots for the report: loss, gradient, speed, and what the guard passed over.

Promise: curves are thinned to a few hundred points, each the mean of what it stands for. Price: none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.figure import Figure, lines, table
from train.state import State

__all__ = ["loss_curve", "training_figures"]

_POINTS = 400  # of a curve in the manifest


def loss_curve(title: str, steps: Sequence[int], losses: Sequence[float], extra: Mapping[str, Any]) -> Figure:
    """A figure of the loss by step, with curves beside it."""
    return lines(title, "step", "nats per token", {"loss": _thinned(steps, losses), **extra})


def training_figures(title: str, state: State, extra: Mapping[str, Any]) -> dict[str, Figure]:
    """The figures of a finished run, by name; `extra` curves are drawn beside the loss."""
    records = state.records
    steps = [r.step for r in records]
    norms, rates = [r.gradient_norm for r in records], [r.learning_rate for r in records]
    speeds = [r.tokens / max(r.seconds, 1e-9) for r in records]
    found = {
        "loss": loss_curve(title, steps, [r.loss for r in records], extra),
        "gradient_norm": lines("Norm of the gradient, before clipping", "step", "norm", {"gradient": _thinned(steps, norms)}),
        "learning_rate": lines("Learning rate", "step", "rate", {"rate": _thinned(steps, rates)}),
        "speed": lines("Speed", "step", "target tokens a second", {"tokens/s": _thinned(steps[1:], speeds[1:])}),
    }
    if state.skips:
        rows = [[skip.step, f"{skip.first} to {skip.last}", skip.reason] for skip in state.skips]
        found["skips"] = table("Spikes that were undone", ["went back to step", "windows passed over", "because"], rows)
    return found


def _thinned(xs: Sequence[int], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    size = max(1, -(-len(xs) // _POINTS))
    groups = [slice(i, i + size) for i in range(0, len(xs), size)]
    return [float(xs[g][-1]) for g in groups], [sum(ys[g]) / len(ys[g]) for g in groups]
