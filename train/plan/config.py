"""Settings of `sterna plan`.

Promise: a budget is understood here or refused in one line; nothing is measured or read.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from cluster.settings import settings
from train.plan.shapes import Architecture

__all__ = ["Budget", "FitConfig", "PlanConfig"]

_SECONDS = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0, "days": 86400.0}
_FORMS = "hours=2, minutes=10 or flops=1e18"


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent: wall time or arithmetic, one of the two."""

    seconds: float | None = None
    flops: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """`hours=…`, `minutes=…` (also days, seconds) or `flops=…`.

        >>> Budget.parse("minutes=2")
        Budget(seconds=120.0, flops=None)
        """
        match = re.fullmatch(r"\s*([A-Za-z]+)\s*=\s*(\S+)\s*", text)
        if match is None or (match[1].lower() not in _SECONDS and match[1].lower() != "flops"):
            raise ValueError(f"budget: {text!r} is not understood; say for instance {_FORMS}")
        try:
            amount = float(match[2])
        except ValueError:
            raise ValueError(f"budget: {match[2]!r} is not a number; say for instance {_FORMS}") from None
        if not (amount > 0 and math.isfinite(amount)):
            raise ValueError(f"budget: {text!r} must be above 0 and finite; say for instance {_FORMS}")
        unit = match[1].lower()
        return cls(flops=amount) if unit == "flops" else cls(seconds=amount * _SECONDS[unit])

    def __str__(self) -> str:
        if self.seconds is not None:
            return f"{self.seconds / 3600:g} hours" if self.seconds >= 3600 else f"{self.seconds / 60:g} minutes"
        return f"{self.flops:g} FLOPs"


@settings
class PlanConfig:
    """`sterna plan run`: what to train on these tokens within this budget."""

    tokens: str
    """Tokens folder (from `sterna tokenize`)."""
    output: str
    """Folder to write plan.toml to."""
    budget: str
    """What may be spent on training: hours=… or minutes=… of wall time on these machines, start-up included, or flops=…."""
    architecture: Architecture = "dense"
    """What kind of model: dense, sliding, alibi, moe, ssm, hybrid or linear (train/plan/shapes.py says what each is)."""
    num_workers: int = 2
    """Training workers that share each step."""
    memory_bytes: int | None = None
    """Memory a worker may use; by default an equal share of nine tenths of this machine's."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Arithmetic of the model; auto is bfloat16 where the processor multiplies it natively, else float32."""
    max_parameters: int | None = None
    """Largest model to consider; by default what the budget makes worthwhile."""
    seed: int = 0
    """Seed of the weights and of the data order, written into the plan."""

    def __post_init__(self) -> None:
        Budget.parse(self.budget)
        if self.num_workers < 1:
            raise ValueError(f"num_workers: is {self.num_workers}; must be at least 1")
        if self.memory_bytes is not None and self.memory_bytes < 1:
            raise ValueError(f"memory_bytes: is {self.memory_bytes}; must be above 0")
        if self.max_parameters is not None and self.max_parameters < 1:
            raise ValueError(f"max_parameters: is {self.max_parameters}; must be above 0")


@settings
class FitConfig:
    """`sterna plan fit`: the law that your own runs follow, and how far it can be trusted."""

    runs: str
    """Table of runs (csv): columns parameters, tokens or flops (then tokens are flops / 6 / parameters), loss; optional unique_tokens."""
    output: str | None = None
    """Folder to write the law, its figures and its manifest to, for `sterna report`; by default it is only printed."""
    plot: str | None = None
    """Write a picture (PNG or SVG) of the fit, the frontier and the residuals to this file."""
    predict: tuple[str, ...] = ()
    """Runs whose loss to predict, with an interval, as PARAMETERS:TOKENS, such as 70e9:1.4e12."""
    embeddings: Literal["included", "excluded", "unsaid"] = "unsaid"
    """Whether the table's parameters include the embeddings: only said again, so that nobody predicts with the other kind."""
    outlier_sigmas: float = 12.0
    """A run is left out, and named, when its residual is beyond so many robust deviations; Huber's loss bounds smaller ones."""
    resamples: int = 200
    """Bootstrap resamples for the intervals."""
    seed: int = 0
    """Of the resamples."""

    def __post_init__(self) -> None:
        if not self.outlier_sigmas > 2:
            raise ValueError(f"outlier_sigmas: is {self.outlier_sigmas:g}; must be above 2, or good runs are thrown away")
        if not 20 <= self.resamples <= 100_000:
            raise ValueError(f"resamples: is {self.resamples}; use 20 to 100000")
        for text in self.predict:
            self.pair(text)

    @staticmethod
    def pair(text: str) -> tuple[float, float]:
        """(parameters, tokens) of `PARAMETERS:TOKENS`.

        >>> FitConfig.pair("70e9:1.4e12")
        (70000000000.0, 1400000000000.0)
        """
        try:
            parameters, tokens = (float(part) for part in text.split(":"))
        except ValueError:
            raise ValueError(f"predict: {text!r} is not PARAMETERS:TOKENS, such as 70e9:1.4e12") from None
        if not (math.isfinite(parameters) and math.isfinite(tokens) and parameters >= 1 and tokens >= 1):
            raise ValueError(f"predict: {text!r} needs at least one parameter and one token, both finite")
        return parameters, tokens
