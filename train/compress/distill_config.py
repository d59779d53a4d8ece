"""Settings of `sterna distill`: whose distribution is learnt, by which model, on which tokens.

Promise: a mistake is one `ValueError` line before any machine is asked for. Price: none; this file imports neither ray nor torch.
"""

from __future__ import annotations

from typing import Literal

from cluster.settings import settings
from train.recipe import Precision, at_least

__all__ = ["DistillConfig"]


@settings
class DistillConfig:
    """`sterna distill`: a smaller model learns the distribution of a larger one.

    At every token of --tokens the student is trained towards all that the teacher thinks likely there, not only the one token
    that was written, so it needs fewer tokens than pretraining does. Both must read text as the same tokens. It runs, grows, shrinks and
    goes on as `sterna pretrain` does, and costs a third more per step, since the teacher is asked along the way.

    --plan makes a student of the shape that a plan says; --student begins with the weights of a model there is, such as one that
    `sterna compress --export dense` wrote. `sterna diverge TEACHER STUDENT` then tells how close it came.
    """

    teacher: str
    """Model folder to learn from (from pretrain or tune, or any Hugging Face folder); each worker holds it and asks it along the way."""
    output: str
    """Folder to write the student to."""
    plan: str | None = None
    """Plan folder or plan.toml of the student: its shape in [model], how it learns in [train]. Give this or --student."""
    student: str | None = None
    """Model folder of the student: its weights are where it begins. Give this or --plan."""
    tokens: str | None = None
    """Tokens folder (from `sterna tokenize`, with the teacher's tokenizer); by default the one that the plan names."""
    steps: int | None = None
    """Optimizer steps; by default the plan's, or 1,000."""
    global_batch: int = 32
    """Sequences per step, for --student; a plan says its own."""
    micro_batch: int | None = None
    """Sequences per forward pass of a worker; by default the plan's, or 4."""
    learning_rate: float | None = None
    """Peak learning rate; by default the plan's, or 0.0005."""
    num_workers: int | None = None
    """Training workers; by default the plan's, or 2."""
    zero_stage: int | None = None
    """ZeRO stage 0 to 3; by default the plan's, or 2."""
    precision: Precision | None = None
    """auto, bfloat16, float16 (on GPUs) or float32; by default the plan's, or auto."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; by default the plan's, or 100."""
    seed: int | None = None
    """Seed of the weights and of the data order; by default the plan's, or 0."""
    save_precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the exported weights."""
    max_failures: int = 3
    """Failures in a row after which the run gives up; -1 is without limit."""

    def __post_init__(self) -> None:
        if (self.plan is None) == (self.student is None):
            raise ValueError("plan: give either --plan, whose model is the student, or --student with a model folder")
        if self.student is not None and self.tokens is None:
            raise ValueError("tokens: a --student needs --tokens, a folder from `sterna tokenize`")
        at_least(self.global_batch, 1, "global_batch")
