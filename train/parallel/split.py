"""The loop's step on a model that several workers hold in parts: each matrix in parts, or each some of the layers.

Promise: the same step as one process of plain torch: its loss, gradient norm, clipping, spike guard and checkpoints; the parts are
DeepSpeed's (train/parallel/tensor.py, train/parallel/pipeline.py). Float32 weights; bfloat16 arithmetic by autocast. Price: what one part
waits for another. The norm and the loss are known only between DeepSpeed's exchange of gradients and the optimizer's step, so that is
where they are taken: in a hook before the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed
from torch import Tensor

from train.corpus import Batch
from train.elastic.pieces import Piece
from train.member import Member
from train.optimize.arithmetic import arithmetic_of_all
from train.recipe import Recipe

__all__ = ["Split", "SplitStepper", "engine_config"]


class Split(Protocol):
    """A model in parts, as one worker sees its own."""

    engine: Any
    """DeepSpeed's."""
    optimizer: torch.optim.Optimizer
    replica: int
    nll: float
    """This worker's contribution to Σ −log p since it was last set to 0; over the workers of a replica they add up to the replica's."""

    def step(self, batches: Sequence[Batch], scale: float) -> None:
        """Forward, backward and update, with gradients of nll · scale."""

    def judge(self, batch: Batch) -> float:
        """Σ −log p over a batch, on every worker of the replica."""

    def parts(self) -> list[tuple[Tensor, float]]:
        """This worker's parameters, and 1 / how many workers of the replica hold the same values."""

    def pieces(self) -> list[Piece]:
        """See train/elastic/pieces.py."""

    def weights(self) -> dict[str, Tensor]:
        """Whole parameters by name, on worker 0; all workers must call it."""


class SplitStepper(Member):
    """A Stepper around a Split."""

    def __init__(self, split: Split, recipe: Recipe, device: torch.device) -> None:
        super().__init__(device)
        self._split, self._recipe = split, recipe
        self.replica, self.num_replicas = split.replica, recipe.num_replicas
        self.precision = arithmetic_of_all(device, recipe.precision)
        if self.precision == "float16":
            raise ValueError("precision: float16 with tensor or pipeline parallelism is not done yet; give bfloat16 or float32")
        self._before_update: Callable[[], None] = lambda: None
        split.optimizer.register_step_pre_hook(lambda *_: self._before_update())

    def step(
        self, batches: Sequence[Batch], num_labels: int, learning_rate: float, judge: Callable[[float], None] = lambda _: None
    ) -> tuple[float, float]:
        """See Stepper."""
        found: list[float] = []

        def before_update() -> None:
            loss = self.total(self._split.nll) / num_labels
            judge(loss)
            found.extend((loss, self._clip()))

        self._split.nll, self._before_update = 0.0, before_update
        for group in self._split.optimizer.param_groups:
            group["lr"] = learning_rate
        # DeepSpeed divides by the micro-steps and averages over the replicas; both are undone here, so that each target weighs the same
        with self._autocast():
            self._split.step([batch.to(self._device) for batch in batches], self.num_replicas * len(batches) / num_labels)
        loss, norm = found
        return loss, norm

    def nll(self, batch: Batch) -> float:
        """See Stepper."""
        with torch.no_grad(), self._autocast():
            return self._split.judge(batch.to(self._device))

    def pieces(self) -> list[Piece]:
        """What a checkpoint holds."""
        return self._split.pieces()

    def weights(self) -> dict[str, Tensor]:
        """Every trained parameter, whole, by its name in the model; all workers must call it, rank 0 gets them."""
        return self._split.weights()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def _clip(self) -> float:
        """Clip the gradients as a whole; gives the norm that they had."""
        parts = [(p.grad, share) for p, share in self._split.parts() if p.grad is not None]
        squares = sum(share * float(grad.double().square().sum()) for grad, share in parts)
        norm = (self.total(squares) / self.num_replicas) ** 0.5
        if self._recipe.clip and norm > self._recipe.clip:
            for grad, _ in parts:
                grad.mul_(self._recipe.clip / (norm + 1e-6))
        return norm


def engine_config(recipe: Recipe) -> dict[str, Any]:
    """What every split tells DeepSpeed: float32, no sharding, no clipping and no optimizer of its own."""
    return {
        "train_micro_batch_size_per_gpu": recipe.micro_batch,
        "gradient_accumulation_steps": recipe.micro_steps,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": 0},
        "steps_per_print": 1 << 30,
        "wall_clock_breakdown": False,
    }
