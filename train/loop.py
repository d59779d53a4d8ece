"""The training loop: one step, then many. It knows neither Ray nor DeepSpeed.

Promise: a step's loss is the mean over all target tokens of its global batch, however they fall on workers and
micro-batches (a worker with fewer targets does not skew it); the same recipe and data give the same steps whether or not
the run was interrupted. Price: counting the targets of a global batch reads its segment ids on every worker.
Source: nanochat's `base_train.py` for the shape; the step itself is behind `Stepper`, so one process, DeepSpeed and
whatever comes later run the same loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from train.corpus import Batch, Cursor, Source
from train.loss import CausalLoss
from train.recipe import Recipe
from train.zero import ADAM_BETAS

__all__ = ["PlainStepper", "Record", "State", "Stepper", "held_out_loss", "learning_rate_at", "parameter_groups", "run", "use_bfloat16"]


@dataclass(frozen=True, slots=True)
class Record:
    """What one step did."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Mean −log p over the target tokens of the global batch, in nats, before the step's update."""
    tokens: int
    """Target tokens of the global batch."""
    seconds: float
    """Wall time since the step before (checkpoints included)."""
    learning_rate: float
    gradient_norm: float


@dataclass(frozen=True, slots=True)
class State:
    """A run between two steps: all that a checkpoint must hold beside weights and optimizer."""

    step: int = 0
    records: list[Record] = field(default_factory=list)

    def after(self, record: Record) -> State:
        """The state one step on."""
        return State(record.step, [*self.records, record])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> State:
        return cls(data["step"], [Record(**record) for record in data["records"]])

    def final_loss(self) -> float:
        """Mean loss per target token over the last twentieth of the steps (one batch alone is noisy)."""
        last = self.records[-max(1, len(self.records) // 20) :]
        return sum(r.loss * r.tokens for r in last) / max(1, sum(r.tokens for r in last))

    def tokens_per_second(self) -> float:
        """Target tokens per second over the run, without its first step, which warms caches."""
        timed = self.records[1:] or self.records
        return sum(r.tokens for r in timed) / max(1e-9, sum(r.seconds for r in timed))


class Stepper(Protocol):
    """A model and its optimizer, on one process or on many."""

    rank: int
    world_size: int

    def step(self, batches: Sequence[Batch], num_labels: int, learning_rate: float) -> tuple[float, float]:
        """One update from this worker's micro-batches; `num_labels` is the global batch's. Gives (global mean loss, gradient norm)."""

    def nll(self, batch: Batch) -> float:
        """Σ −log p over this worker's batch, without an update."""

    def total(self, value: float) -> float:
        """The sum of every worker's `value`; all must call it."""


def run(
    stepper: Stepper,
    source: Source,
    recipe: Recipe,
    *,
    state: State,
    report: Callable[[Record], None] = lambda _: None,
    checkpoint: Callable[[State], None] = lambda _: None,
) -> State:
    """Train from `state` to the recipe's last step; `checkpoint` is called every so many steps and after the last."""
    cursor = Cursor(recipe.seed, recipe.global_batch, len(source), state.step, source.index)
    before = time.monotonic()
    while cursor.step < recipe.steps:
        record = one_step(stepper, source, recipe, cursor, before)
        before += record.seconds
        state, cursor = state.after(record), cursor.next()
        report(record)
        if state.step % recipe.checkpoint_every == 0 or state.step == recipe.steps:
            checkpoint(state)
    return state


def one_step(stepper: Stepper, source: Source, recipe: Recipe, cursor: Cursor, before: float) -> Record:
    """The step at `cursor`; `before` is when the step before it ended."""
    torch.manual_seed(hash((recipe.seed, cursor.step, stepper.rank)) & 0x7FFFFFFF)  # dropout is the step's, not the process's
    mine = cursor.share(stepper.rank, stepper.world_size)
    num_labels = source.num_labels(cursor.indices())
    batches = [source.batch(part) for part in np.split(mine, len(mine) // recipe.micro_batch)]
    rate = learning_rate_at(recipe, cursor.step)
    loss, norm = stepper.step(batches, num_labels, rate)
    return Record(cursor.step + 1, loss, num_labels, time.monotonic() - before, rate, norm)


def held_out_loss(stepper: Stepper, source: Source, micro_batch: int) -> float:
    """Mean −log p per target token over all of `source`, its sequences dealt to the workers in turn."""
    mine = np.arange(stepper.rank, len(source), stepper.world_size)
    nll = sum(stepper.nll(source.batch(mine[i : i + micro_batch])) for i in range(0, len(mine), micro_batch))
    return stepper.total(nll) / max(1.0, stepper.total(source.num_labels(mine)) if len(mine) else stepper.total(0.0))


def learning_rate_at(recipe: Recipe, step: int) -> float:
    """The rate of 0-based `step`: linear warm-up, then constant or cosine to a tenth of the peak at the last step.

    >>> recipe = Recipe(steps=11, global_batch=2, micro_batch=1, sequence_length=8, learning_rate=1.0, warmup_steps=2)
    >>> [round(learning_rate_at(recipe, step), 2) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.55, 0.1]
    """
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    if recipe.schedule == "constant":
        return recipe.learning_rate
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - 1 - recipe.warmup_steps)
    return recipe.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters, matrices with weight decay and vectors (norms, biases) without."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [([p for p in trainable if p.ndim >= 2], weight_decay), ([p for p in trainable if p.ndim < 2], 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether `precision` (auto, bfloat16, float32) means bfloat16 here: auto, where the processor has matrix units for it.

    AVX-512 alone also multiplies bfloat16, but half as fast as float32 in training's wide products (83 against 150 GFLOP/s a core).
    """
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and bool({"amx_bf16", "bf16"} & set(cpuinfo.read_text().split()))


class PlainStepper:
    """One process, plain torch: float32 weights, bfloat16 arithmetic by autocast. The reference for every other stepper."""

    rank, world_size = 0, 1

    def __init__(self, model: PreTrainedModel, recipe: Recipe, device: torch.device | None = None) -> None:
        self._device = device or torch.device("cpu")
        self._recipe = recipe
        self._bfloat16 = use_bfloat16(recipe.precision, self._device)
        self.precision = "bfloat16" if self._bfloat16 else "float32"
        self._loss = CausalLoss(model.float().to(self._device))
        self._optimizer = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), lr=0.0, betas=ADAM_BETAS, eps=1e-8, fused=True)

    def step(self, batches: Sequence[Batch], num_labels: int, learning_rate: float) -> tuple[float, float]:
        """See Stepper."""
        self._loss.train()
        total = torch.zeros((), device=self._device)
        for batch in batches:
            nll = self._nll(batch)
            (nll / num_labels).backward()
            total += nll.detach()
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._recipe.clip or math.inf)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(total) / num_labels, float(norm)

    def nll(self, batch: Batch) -> float:
        """See Stepper."""
        self._loss.eval()
        with torch.no_grad():
            return float(self._nll(batch))

    def total(self, value: float) -> float:
        """See Stepper."""
        return value

    def barrier(self) -> None:
        """Nobody to wait for."""

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state into `folder`."""
        torch.save({"model": self._loss.state_dict(), "optimizer": self._optimizer.state_dict()}, folder / "plain.pt")

    def load(self, folder: Path) -> None:
        """Read back what `save` wrote."""
        saved = torch.load(folder / "plain.pt", map_location=self._device, weights_only=True)
        self._loss.load_state_dict(saved["model"])
        self._optimizer.load_state_dict(saved["optimizer"])

    def weights(self) -> dict[str, Tensor]:
        """Every trained parameter by its name in the model."""
        return {name: p.detach() for name, p in self._loss.model.named_parameters() if p.requires_grad}

    def _nll(self, batch: Batch) -> Tensor:
        batch = batch.to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            return self._loss(batch.input_ids, batch.labels, batch.position_ids)
