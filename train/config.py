"""Settings of the training verbs pretrain and evaluate (tune has its own in train/tuning/).

Promise: plain frozen data, checked when it is made; a mistake is one `ValueError` line before any machine is asked for.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from cluster.settings import settings
from train.recipe import Precision, Recipe, at_least

__all__ = ["EvaluateConfig", "PretrainConfig", "overridden"]


@settings
class PretrainConfig:
    """`sterna pretrain`: a model from a plan."""

    plan: str
    """Plan folder (from `sterna plan run`), or a plan.toml of your own."""
    output: str
    """Folder to write the model to."""
    tokens: str | None = None
    """Tokens folder (from `sterna tokenize`); by default the one that the plan names."""
    mix: tuple[str, ...] = ()
    """Further tokens folders of the same tokenizer, each as FOLDER=SHARE of the sequences that are taken; `tokens` has the rest."""
    model: str | None = None
    """Go on training this model folder (from pretrain, or any Hugging Face folder of a causal model) instead of making the plan's model."""
    teacher: str | None = None
    """Learn the distribution of this model folder at every token (distillation) instead of the tokens alone; of the same vocabulary."""
    steps: int | None = None
    """Optimizer steps, instead of the plan's; the learning-rate schedule is fitted to them."""
    num_workers: int | None = None
    """Training workers, instead of the plan's."""
    zero_stage: int | None = None
    """ZeRO stage 0 to 3, instead of the plan's."""
    tensor: int | None = None
    """Workers that split each matrix among them, instead of the plan's; with zero_stage 0."""
    pipeline: int | None = None
    """Workers that each hold some of the layers, instead of the plan's; with zero_stage 0."""
    sequence: int | None = None
    """Workers that split each sequence among them, instead of the plan's."""
    precision: Precision | None = None
    """auto, bfloat16, float16 (on GPUs) or float32, instead of the plan's."""
    offload: Literal["none", "optimizer", "parameters"] | None = None
    """What is kept in host memory and not on the GPU, instead of the plan's."""
    gradient_checkpointing: bool | None = None
    """Compute each layer again on the way back instead of keeping its activations."""
    optimizer: Literal["adamw", "muon"] | None = None
    """adamw or muon, instead of the plan's."""
    learning_rate: float | None = None
    """Peak learning rate, instead of the plan's."""
    schedule: Literal["cosine", "wsd", "constant"] | None = None
    """cosine, wsd or constant after warm-up, instead of the plan's."""
    z_loss: float | None = None
    """Weight of the squared log-normaliser in what is minimised, instead of the plan's."""
    guard: float | None = None
    """Robust deviations from which a loss is a spike that is undone, instead of the plan's; 0 switches the guard off."""
    micro_batch: int | None = None
    """Sequences per forward pass of a worker, instead of the plan's."""
    checkpoint_every: int | None = None
    """Steps between checkpoints, instead of the plan's."""
    seed: int | None = None
    """Seed of the weights and of the data order, instead of the plan's."""
    save_precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the exported weights."""
    min_workers: int = 1
    """Workers that it goes on with at the least when machines leave; with room for fewer it waits."""
    growth: Literal["worth", "always", "never"] = "worth"
    """Whether to stop and go on with more workers, up to num_workers, when machines come: where that saves time, always, or never."""
    max_failures: int = 3
    """Failures in a row, with no new checkpoint between them and no machine lost, after which the run gives up; -1 is without limit."""

    def __post_init__(self) -> None:
        if self.max_failures < -1:
            raise ValueError("max_failures: must be -1 (no limit) or more")
        at_least(self.min_workers, 1, "min_workers")


@settings
class EvaluateConfig:
    """`sterna evaluate`: bits per byte of models on text they were not trained on, and how often they prefer the right answer."""

    models: tuple[str, ...]
    """Model folders to compare, each optionally as name=FOLDER; FOLDER+ADAPTER is a model with an adapter that `sterna tune` wrote."""
    data: tuple[str, ...] = ()
    """Tokens folder (its held_out.parquet), or parquet, jsonl (`text`), txt or md files."""
    tasks: tuple[str, ...] = ()
    """Jsonl files of multiple-choice questions, each optionally as name=FILE: `prompt`, `choices` and the right one's index in `answer`;
    or pairs of answers: `chosen` and `rejected`."""
    output: str
    """Folder to write the results to."""
    max_length: int | None = None
    """Tokens per window; by default each model's context, at most 1024."""
    overlap: float = 0.5
    """Share of a window that only gives context to the rest of it, in documents longer than a window."""
    max_bytes: int = 0
    """Bytes of text judged at most (whole documents, chosen by hash); 0 is all of it."""
    batch_tokens: int = 8192
    """Tokens per forward pass."""
    precision: Precision = "auto"
    """Arithmetic of the models; auto is bfloat16 where the processor has matrix units for it, else float32."""

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models: is empty; give at least one model folder")
        if not self.data and not self.tasks:
            raise ValueError("data: is empty; give a tokens folder or text files, or --tasks with multiple-choice questions")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap: is {self.overlap}; must be at least 0 and below 1")
        if self.max_length is not None:
            at_least(self.max_length, 2, "max_length")
        at_least(self.batch_tokens, 1, "batch_tokens")
        at_least(self.max_bytes, 0, "max_bytes")


def overridden(table: dict[str, Any], config: PretrainConfig) -> dict[str, Any]:
    """The `[train]` table with what the command line says instead; a shorter run warms up for at most a tenth of it.

    >>> overridden({"steps": 100, "warmup_steps": 30, "tokens": "t"}, PretrainConfig(plan="p", output="o", steps=50))
    {'steps': 50, 'warmup_steps': 5}
    """
    names = {field.name for field in dataclasses.fields(Recipe)}
    given = {name: value for name in names if (value := getattr(config, name, None)) is not None}
    merged = {**{k: v for k, v in table.items() if k != "tokens"}, **given}
    if "steps" in given and _counts(merged, "warmup_steps"):
        merged["warmup_steps"] = min(merged["warmup_steps"], given["steps"] // 10)
    layout = [name for name in ("tensor", "pipeline", "sequence") if name in merged]
    if "num_workers" in given and "micro_batch" not in given and _counts(merged, "num_workers", "micro_batch", "global_batch", *layout):
        share = max(1, merged["global_batch"] * math.prod(merged[name] for name in layout) // given["num_workers"])
        merged["micro_batch"] = max(n for n in range(1, min(merged["micro_batch"], share) + 1) if share % n == 0)
    return merged


def _counts(table: dict[str, Any], *names: str) -> bool:
    """Whether all of these are there and can be reckoned with; what they should be is for `Recipe` to say."""
    return all(isinstance(table.get(name), int) and table[name] > 0 for name in names)
