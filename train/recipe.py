"""The recipe of a training run: what a plan hands to the loop, and what tune derives from its own settings.

Promise: plain frozen data, checked when it is made; a mistake is one `ValueError` line before any machine is asked for.
"""

from __future__ import annotations

import math
from typing import Literal

from cluster.settings import settings

__all__ = ["Precision", "Recipe", "at_least"]

Precision = Literal["auto", "bfloat16", "float16", "float32"]


@settings
class Recipe:
    """How a loop trains: the `[train]` table of plan.toml, or what tune derives from its own settings."""

    steps: int
    """Optimizer steps of the whole run."""
    global_batch: int
    """Sequences per optimizer step, over all workers."""
    micro_batch: int
    """Sequences a worker passes through the model at once; the rest of its share is accumulated."""
    sequence_length: int
    """Tokens per sequence."""
    learning_rate: float
    """Peak learning rate."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw for everything, or muon for the hidden matrices and adamw for the rest; muon needs zero_stage 0, or one worker."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; norms and biases are never decayed."""
    warmup_steps: int = 0
    """Steps over which the learning rate climbs from 0 to its peak."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """Shape of the learning rate after warm-up: cosine to a tenth of the peak; wsd stays at the peak, then falls to nearly 0; constant."""
    decay_share: float = 0.2
    """Share of the steps, at their end, over which wsd falls."""
    clip: float = 1.0
    """Largest norm of the gradient; a larger one is scaled down to it. 0 switches clipping off."""
    z_loss: float = 0.0
    """Weight of the squared log-normaliser that is added to what is minimised (not to the loss reported), e.g. 1e-4; 0: none."""
    guard: float = 8.0
    """Robust standard deviations above the recent losses from which a loss is a spike: the run goes back to its last good step and passes
    over the data since. 0 switches the guard off, and saves its copy of weights and optimizer in host memory."""
    zero_stage: int = 2
    """What ZeRO shards over the workers: 0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What is kept in host memory and not on the GPU: optimizer (from zero_stage 1), or the parameters too (zero_stage 3)."""
    gradient_checkpointing: bool = False
    """Compute each layer again on the way back instead of keeping its activations: less memory, about a third more work."""
    precision: Precision = "auto"
    """Arithmetic of the model; float16 (with loss scaling) needs a GPU; auto is bfloat16 where the processor has matrix units for it, else
    float32."""
    num_workers: int = 2
    """Workers that share each step."""
    tensor: int = 1
    """Workers that split each matrix among them (tensor parallelism); for the dense and sliding architectures, with zero_stage 0."""
    pipeline: int = 1
    """Workers that each hold some of the layers (pipeline parallelism); for the dense and sliding architectures, with zero_stage 0. Its
    micro-batches fill the pipeline, so global_batch should be several times micro_batch."""
    sequence: int = 1
    """Workers that split each sequence among them (Ulysses' sequence parallelism), for long contexts; with any zero_stage."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    seed: int = 0
    """Seed of the initial weights and of the order of the sequences."""

    def __post_init__(self) -> None:
        for name in ("steps", "global_batch", "micro_batch", "sequence_length", "num_workers", "checkpoint_every"):
            at_least(getattr(self, name), 1, name)
        for name in ("learning_rate", "weight_decay", "decay_share", "clip", "z_loss", "guard"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}: is {getattr(self, name)}; must be a finite number")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate: is {self.learning_rate}; must be above 0")
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage: is {self.zero_stage}; must be 0, 1, 2 or 3")
        for name in ("warmup_steps", "clip", "weight_decay", "z_loss", "guard"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: is {getattr(self, name)}; must not be negative")
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"decay_share: is {self.decay_share}; must lie above 0 and at most at 1")
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps: is {self.warmup_steps}, of {self.steps} steps; the learning rate would never reach its peak")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed: is {self.seed}; must be from 0 to 2^63 - 1")
        if self.optimizer == "muon" and self.zero_stage and self.num_workers > 1:
            raise ValueError(f"optimizer: muon needs whole matrices on every worker; set zero_stage to 0 (it is {self.zero_stage})")
        if self.optimizer == "muon" and self.offload != "none":
            raise ValueError(f"offload: {self.offload} is for adamw; muon keeps its momentum beside the weights; set offload to none")
        if self.offload != "none" and self.zero_stage < (least := {"optimizer": 1, "parameters": 3}[self.offload]):
            raise ValueError(f"offload: {self.offload} needs zero_stage {least} or more, it is {self.zero_stage}")
        self._check_layout()
        if self.global_batch % (self.num_replicas * self.micro_batch):
            raise ValueError(
                f"global_batch: {self.global_batch} sequences cannot be dealt evenly to {self.num_replicas} "
                f"{'workers' if self.workers_per_replica == 1 else 'groups of workers'} in micro-batches of {self.micro_batch}; "
                f"make it a multiple of {self.num_replicas * self.micro_batch}{', or micro_batch smaller' if self.micro_batch > 1 else ''}"
            )

    def _check_layout(self) -> None:
        split = {name: getattr(self, name) for name in ("tensor", "pipeline", "sequence")}
        for name, size in split.items():
            at_least(size, 1, name)
        used = [name for name, size in split.items() if size > 1]
        if len(used) > 1:
            raise ValueError(f"{used[1]}: cannot be combined with {used[0]} yet; set one of them to 1")
        if used and self.num_workers % self.workers_per_replica:
            raise ValueError(
                f"{used[0]}: {self.num_workers} worker{'s' if self.num_workers > 1 else ''} do not make groups of "
                f"{self.workers_per_replica}; make num_workers a multiple of {self.workers_per_replica}"
            )
        if self.sequence_length % self.sequence:
            raise ValueError(f"sequence: {self.sequence} workers cannot split {self.sequence_length} tokens evenly")
        if max(self.tensor, self.pipeline) > 1 and (self.zero_stage, self.offload, self.optimizer) != (0, "none", "adamw"):
            raise ValueError(f"{used[0]}: needs zero_stage 0, offload none and optimizer adamw; it splits weights and their state already")
        if self.pipeline > 1 and self.gradient_checkpointing:
            raise ValueError("pipeline: cannot be combined with gradient_checkpointing yet; switch that off")

    @property
    def workers_per_replica(self) -> int:
        """Workers that work on the same sequences together."""
        return self.tensor * self.pipeline * self.sequence

    @property
    def num_replicas(self) -> int:
        """Groups of workers that each take a share of the global batch."""
        return self.num_workers // self.workers_per_replica

    @property
    def micro_steps(self) -> int:
        """Micro-batches a worker accumulates per step."""
        return self.global_batch // (self.num_replicas * self.micro_batch)


def at_least(value: int, least: int, name: str) -> None:
    """Refuse a setting below its least value."""
    if value < least:
        raise ValueError(f"{name}: is {value}; must be at least {least}")
