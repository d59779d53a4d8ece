"""Settings of `sterna plan`.

Promise: a budget is understood here or refused in one line; nothing is measured or read.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from cluster.settings import settings
from train.plan.catalogue import LOCAL
from train.plan.shapes import Architecture

__all__ = ["Budget", "ExplainConfig", "FitConfig", "PlanConfig", "SweepConfig"]

_SECONDS = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0, "days": 86400.0}
_MOST_SERVED = 1e18
_FORMS = "hours=2, minutes=10, dollars=50 or flops=1e18"


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent: wall time, arithmetic or money, one of the three."""

    seconds: float | None = None
    flops: float | None = None
    dollars: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """`hours=…`, `minutes=…` (also days, seconds), `dollars=…` or `flops=…`.

        >>> Budget.parse("minutes=2")
        Budget(seconds=120.0, flops=None, dollars=None)
        """
        if text.count("=") > 1:
            raise ValueError(f"budget: {text!r} names several limits, which may contradict each other; give one, such as {_FORMS}")
        match = re.fullmatch(r"\s*([A-Za-z]+)\s*=\s*(\S+)\s*", text)
        unit = match[1].lower().removesuffix("s") + "s" if match else ""
        if match is None or unit not in (*_SECONDS, "flops", "dollars"):
            raise ValueError(f"budget: {text!r} is not understood; say for instance {_FORMS}")
        try:
            amount = float(match[2])
        except ValueError:
            raise ValueError(f"budget: {match[2]!r} is not a number; say for instance {_FORMS}") from None
        if not (amount > 0 and math.isfinite(amount)):
            raise ValueError(f"budget: {text!r} must be above 0 and finite; say for instance {_FORMS}")
        return cls(seconds=amount * _SECONDS[unit]) if unit in _SECONDS else cls(**{unit: amount})

    def times(self, factor: float) -> Budget:
        """So many times as much."""
        seconds, flops, dollars = (None if part is None else factor * part for part in (self.seconds, self.flops, self.dollars))
        return Budget(seconds, flops, dollars)

    def __str__(self) -> str:
        if self.seconds is not None:
            unit = "hours" if self.seconds >= 3600 else "minutes" if self.seconds >= 60 else "seconds"
            return f"{self.seconds / _SECONDS[unit]:g} {unit}"
        return f"{self.flops:g} FLOPs" if self.flops is not None else f"{self.dollars:g} dollars"


@settings
class PlanConfig:
    """`sterna plan run`: what to train on these tokens within this budget."""

    tokens: str
    """Tokens folder (from `sterna tokenize`)."""
    output: str
    """Folder to write plan.toml to."""
    budget: str
    """What may be spent on training: hours=… or minutes=… of wall time on these machines, start-up included, dollars=…, or flops=…."""
    machines: str = LOCAL
    """local, which is measured, or COUNTxNAME of the catalogue, such as 8xH100 or 2xp5.48xlarge, whose speed is assumed."""
    law: str | None = None
    """Folder of `sterna plan fit` or `plan sweep`: the loss is predicted by that law instead of by priors."""
    serve_tokens: float = 0.0
    """Tokens that the model will serve in its life: the smallest sum of training and serving for the same loss is looked for."""
    max_params: float | None = None
    """Largest model to consider, in parameters; by default what the budget makes worthwhile."""
    architecture: Architecture = "dense"
    """What kind of model: dense, sliding, alibi, moe, ssm, hybrid or linear (train/plan/shapes.py says what each is)."""
    num_workers: int | None = None
    """Training workers that share each step; by default one for each accelerator, without any 2."""
    memory_bytes: float | None = None
    """Memory a worker may use; by default most of its accelerator's, or an equal share of nine tenths of this machine's."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Arithmetic of the model; auto is bfloat16 where the processor multiplies it natively, else float32."""
    market: Literal["on-demand", "spot"] = "on-demand"
    """Where the machines are bought: what dollars buy, what is lost to preemptions, and how often to save follow from it."""
    price_per_hour: float | None = None
    """Dollars an hour for all machines together, on demand, instead of the catalogue's."""
    spot_price_per_hour: float | None = None
    """The same on spot."""
    region: str = ""
    """AWS region to ask for today's prices of a machine type; by default the catalogue's prices are taken."""
    preemptions_per_hour: float = 0.05
    """How often the market takes a spot machine: 0.05 is once in twenty hours."""
    failure_hours: float = 6300.0
    """Mean hours between unannounced failures of a machine; the default is what Llama 3's training met."""
    catalogue: str | None = None
    """TOML file of accelerators and machines of your own, laid over Sterna's."""
    seed: int = 0
    """Seed of the weights and of the data order, written into the plan."""

    def __post_init__(self) -> None:
        Budget.parse(self.budget)
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"num_workers: is {self.num_workers}; must be at least 1")
        for name in ("memory_bytes", "max_params", "price_per_hour", "spot_price_per_hour", "failure_hours"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}: is {value:g}; must be above 0 and finite")
        for name in ("serve_tokens", "preemptions_per_hour"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name}: is {value:g}; must be finite and not negative")
        if self.serve_tokens > _MOST_SERVED:
            raise ValueError(
                f"serve_tokens: {self.serve_tokens:g} are more than all machines of the world serve; use at most {_MOST_SERVED:g}"
            )
        if self.spot_price_per_hour is not None and self.price_per_hour is None and self.machines == LOCAL:
            raise ValueError("spot_price_per_hour: is given, but not price_per_hour; give both for machines that are not in the catalogue")


@settings
class ExplainConfig:
    """`sterna plan explain`: why a plan is what it is."""

    plan: str
    """Plan folder (from `sterna plan run`), or its plan.toml."""


@settings
class SweepConfig:
    """`sterna plan sweep`: the law of your own text, from small models trained on it."""

    tokens: str
    """Tokens folder (from `sterna tokenize`)."""
    output: str
    """Folder to write the runs, their law and its figures to."""
    budget: str = "minutes=12"
    """What may be spent on all runs together: hours=… or minutes=… of wall time, start-up included, or flops=…."""
    sizes: int = 4
    """Sizes of models; each is trained on three amounts of tokens."""
    verify: bool = False
    """Beyond the budget, train a model four times the largest on as many tokens as its largest, and say how far the law is off."""
    architecture: Architecture = "dense"
    """What kind of model."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Arithmetic of the models."""
    resamples: int = 200
    """Bootstrap resamples for the intervals."""
    seed: int = 0
    """Of the weights, of the data's order, and of the choice of what is held out."""

    def __post_init__(self) -> None:
        if Budget.parse(self.budget).dollars is not None:
            raise ValueError("budget: a sweep is given time or arithmetic; say hours=…, minutes=… or flops=…")
        if not 2 <= self.sizes <= 8:
            raise ValueError(f"sizes: is {self.sizes}; must be 2 to 8")
        if not 20 <= self.resamples <= 100_000:
            raise ValueError(f"resamples: is {self.resamples}; use 20 to 100000")


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
        if self.seed < 0:
            raise ValueError(f"seed: is {self.seed}; must not be negative")
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
