"""`sterna diverge BASE OTHER`: how far the tokens of one model differ from another's, on given prompts.

Promise: the metrics, intervals and noise floor of a certificate (certify.py) for any two models that read text as the same tokens,
however the other one came about: compressed here or elsewhere, tuned, merged, of another size. Price: the base's greedy completions,
a pass over them by each model in float32 and by the base in bfloat16. Source: Divergent Token Metrics (arXiv 2311.01544).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cluster.console import progress
from serve.engine.engine import Engine
from serve.engine.families import read_shape
from serve.engine.text import Tokenizer
from serve.engine.weights import read_config
from train.compress.card import figures_of
from train.compress.certify import certify
from train.compress.config import DivergeConfig
from train.compress.divergence import judge
from train.compress.original import losses_of, study
from train.compress.prompts import Probes, read_probes
from train.compress.store import Store
from train.model_folder import open_model

__all__ = ["Divergence", "diverge"]


@dataclass(frozen=True, slots=True)
class Divergence:
    """What was measured."""

    base: str
    other: str
    certificate: Mapping[str, Any]

    def summary(self) -> dict[str, Any]:
        """For --json."""
        return {"base": self.base, "other": self.other, "certificate": dict(self.certificate)}

    def __str__(self) -> str:
        rows = figures_of(self.certificate)
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        found = self.certificate
        head = f"{self.other} against {self.base}: {found['num_prompts']} prompts, {found['num_tokens']:,} tokens"
        return "\n".join([head, *("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)])


def diverge(config: DivergeConfig) -> Divergence:
    """Compare the two models of `config`; ValueError for folders that are no models, or models that read text as other tokens."""
    (base, digest), (other, _) = (open_model(folder) for folder in config.models)
    probes, skipped = _probes(config, (base, other))
    with TemporaryDirectory() as scratch:
        original = study(base, digest, {"held_out": probes}, config.engine, config.completion_tokens, Store(Path(scratch)))
    reference, candidate = original.references["held_out"], Engine.load(other, replace(config.engine, dtype="float32"))
    with progress("the other model reads them", len(probes.prompts) + len(probes.texts), "passes") as advance:
        traces = judge(candidate, reference, done=advance)
        losses = losses_of(candidate, probes.texts, advance)
    certificate = certify(reference, traces, original.noise, (original.text_losses, losses), seed=config.seed)
    return Divergence(*config.models, {**certificate, "skipped": skipped})


def _probes(config: DivergeConfig, folders: tuple[Path, Path]) -> tuple[Probes, int]:
    """The prompts, which have to be the same tokens to both models."""
    shapes = [read_shape(read_config(folder), str(folder)) for folder in folders]
    context = min(config.engine.max_length or math.inf, *(shape.max_length for shape in shapes))
    wanted = {"held_out": config.num_prompts}
    (parts, skipped), (theirs, _) = (read_probes(config, Tokenizer(folder), int(context), wanted) for folder in folders)
    if parts != theirs or shapes[0].vocab_size != shapes[1].vocab_size:
        raise ValueError(
            f"{config.models[1]}: its tokens are not those of {config.models[0]}; compare models with one tokenizer and vocabulary"
        )
    return parts["held_out"], skipped
