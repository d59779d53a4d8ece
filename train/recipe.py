"""The recipe of a training run: what a plan hands to the loop, and what tune derives from its own settings.

Promise: plain frozen data, checked when it is made; a mistake is one `ValueError` line before any machine is asked for.
"""

from __future__ import annotations

from typing import Literal

from cluster.settings import settings

__all__ = ["Precision", "Recipe", "at_least"]

Precision = Literal["auto", "bfloat16", "float32"]


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
    optimizer: Literal["adamw"] = "adamw"
    """The optimizer."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; norms and biases are never decayed."""
    warmup_steps: int = 0
    """Steps over which the learning rate climbs from 0 to its peak."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Shape of the learning rate after warm-up; cosine ends at a tenth of the peak."""
    clip: float = 1.0
    """Largest norm of the gradient; a larger one is scaled down to it. 0 switches clipping off."""
    zero_stage: int = 2
    """What ZeRO shards over the workers: 0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters."""
    precision: Precision = "auto"
    """Arithmetic of the model; auto is bfloat16 where the processor has matrix units for it, else float32."""
    num_workers: int = 2
    """Workers that share each step."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    seed: int = 0
    """Seed of the initial weights and of the order of the sequences."""

    def __post_init__(self) -> None:
        for name in ("steps", "global_batch", "micro_batch", "sequence_length", "num_workers", "checkpoint_every"):
            at_least(getattr(self, name), 1, name)
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate: is {self.learning_rate}; must be above 0")
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage: is {self.zero_stage}; must be 0, 1, 2 or 3")
        if self.warmup_steps < 0 or self.clip < 0 or self.weight_decay < 0:
            raise ValueError("warmup_steps, clip, weight_decay: must not be negative")
        if self.global_batch % (self.num_workers * self.micro_batch):
            raise ValueError(
                f"global_batch: {self.global_batch} sequences cannot be dealt evenly to {self.num_workers} workers in "
                f"micro-batches of {self.micro_batch}; make it a multiple of {self.num_workers * self.micro_batch}"
            )

    @property
    def micro_steps(self) -> int:
        """Micro-batches a worker accumulates per step."""
        return self.global_batch // (self.num_workers * self.micro_batch)


def at_least(value: int, least: int, name: str) -> None:
    """Refuse a setting below its least value."""
    if value < least:
        raise ValueError(f"{name}: is {value}; must be at least {least}")
