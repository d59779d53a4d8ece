"""Settings of the training verbs: pretrain, tune, evaluate.

Promise: plain frozen data, checked when it is made; a mistake is one `ValueError` line before any machine is asked for.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from cluster.settings import settings
from train.recipe import Precision, Recipe, at_least

__all__ = ["EvaluateConfig", "PretrainConfig", "TuneConfig", "overridden"]


@settings
class PretrainConfig:
    """`sterna pretrain`: a model from a plan."""

    plan: str
    """Plan folder (from `sterna plan run`), or a plan.toml of your own."""
    output: str
    """Folder to write the model to."""
    tokens: str | None = None
    """Tokens folder (from `sterna tokenize`); by default the one that the plan names."""
    steps: int | None = None
    """Optimizer steps, instead of the plan's; the learning-rate schedule is fitted to them."""
    num_workers: int | None = None
    """Training workers, instead of the plan's."""
    zero_stage: int | None = None
    """ZeRO stage 0 to 3, instead of the plan's."""
    precision: Precision | None = None
    """auto, bfloat16 or float32, instead of the plan's."""
    learning_rate: float | None = None
    """Peak learning rate, instead of the plan's."""
    micro_batch: int | None = None
    """Sequences per forward pass of a worker, instead of the plan's."""
    checkpoint_every: int | None = None
    """Steps between checkpoints, instead of the plan's."""
    seed: int | None = None
    """Seed of the weights and of the data order, instead of the plan's."""
    save_precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the exported weights."""
    max_failures: int = 3
    """Worker failures after which the run goes on from its newest checkpoint; -1 is without limit."""

    def __post_init__(self) -> None:
        if self.max_failures < -1:
            raise ValueError("max_failures: must be -1 (no limit) or more")


@settings
class TuneConfig:
    """`sterna tune`: LoRA on instruction data, losses on completions only."""

    model: str
    """Model folder: from pretrain, or any Hugging Face folder of a causal model with its tokenizer."""
    data: tuple[str, ...]
    """Instruction jsonl files (each line has `messages`), or corpus folders (from `sterna curate`), whose functions become pairs."""
    output: str
    """Folder to write the tuned model (or the adapter) to."""
    method: Literal["lora"] = "lora"
    """How the model is tuned."""
    rank: int = 16
    """Rank of the LoRA update of each matrix."""
    alpha: float = 32.0
    """Scale of the update: it is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout on the input of the update."""
    targets: tuple[str, ...] = ()
    """Names of the modules to adapt; by default every linear layer but the output layer."""
    merge: bool = True
    """Fold the update into the weights and write a whole model; otherwise write the adapter alone."""
    steps: int | None = None
    """Optimizer steps; by default as many as `epochs` needs."""
    epochs: float = 1.0
    """Passes over the pairs, when steps is not given."""
    max_steps: int | None = None
    """Upper bound on the steps that epochs asks for."""
    global_batch: int = 16
    """Sequences per step over all workers; pairs are packed into sequences."""
    micro_batch: int = 8
    """Sequences per forward pass of a worker."""
    max_length: int | None = None
    """Tokens per sequence; by default the model's context, at most 512. Longer pairs are set aside and counted."""
    max_pairs: int = 20_000
    """Pairs used at most, chosen by hash."""
    held_out: float = 0.05
    """Share of the pairs kept out of training to measure the loss before and after."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the update."""
    num_workers: int = 2
    """Training workers."""
    zero_stage: int = 2
    """ZeRO stage 0 to 3."""
    precision: Precision = "auto"
    """Arithmetic of the model: auto, bfloat16 or float32."""
    checkpoint_every: int = 50
    """Steps between checkpoints."""
    seed: int = 0
    """Seed of the update's first weights and of the data order."""
    max_failures: int = 3
    """Worker failures after which the run goes on from its newest checkpoint; -1 is without limit."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("data: is empty; give instruction jsonl files or a corpus folder")
        for name in ("rank", "global_batch", "micro_batch", "num_workers", "checkpoint_every"):
            at_least(getattr(self, name), 1, name)
        at_least(self.max_pairs, 2, "max_pairs")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out: is {self.held_out}; must lie between 0 and 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: is {self.dropout}; must be at least 0 and below 1")
        if self.alpha <= 0 or self.epochs <= 0 or self.learning_rate <= 0:
            raise ValueError("alpha, epochs, learning_rate: must be above 0")
        if self.max_length is not None:
            at_least(self.max_length, 16, "max_length")


@settings
class EvaluateConfig:
    """`sterna evaluate`: bits per byte of models on text they were not trained on."""

    models: tuple[str, ...]
    """Model folders to compare, each optionally as name=FOLDER."""
    data: tuple[str, ...]
    """Tokens folder (its held_out.parquet), or parquet, jsonl (`text`), txt or md files."""
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
        if not self.data:
            raise ValueError("data: is empty; give a tokens folder or text files")
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
    if "steps" in given and "warmup_steps" in merged:
        merged["warmup_steps"] = min(merged["warmup_steps"], given["steps"] // 10)
    if "num_workers" in given and "micro_batch" not in given and "micro_batch" in merged:
        share = max(1, merged["global_batch"] // given["num_workers"])
        merged["micro_batch"] = max(n for n in range(1, min(merged["micro_batch"], share) + 1) if share % n == 0)
    return merged
