"""The loop's step on DeepSpeed: ZeRO 1 to 3 over the workers of an initialised process group.

Promise: the same step as `PlainStepper`'s, sharded; weights come back whole and in float32 (the optimizer's masters),
whatever the stage. Price: DeepSpeed's import, and its collectives per step. Source: ZeRO (arXiv 1910.02054).
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from transformers import PreTrainedModel

from train.corpus import Batch
from train.elastic.pieces import Piece
from train.elastic.zero_pieces import publish_masters, zero_pieces
from train.loss import output_weight
from train.member import Member
from train.optimize.arithmetic import arithmetic_of_all
from train.optimize.parameters import parameter_groups
from train.optimize.prepare import prepared
from train.recipe import Recipe
from train.zero import deepspeed_config

__all__ = ["ShardedStepper", "quiet_deepspeed"]


class ShardedStepper(Member):
    """A DeepSpeed engine around a model, as one worker of the process group sees it."""

    def __init__(self, model: PreTrainedModel, recipe: Recipe, device: torch.device | None = None) -> None:
        super().__init__(device or torch.device("cpu"))
        deepspeed = quiet_deepspeed(self._device)
        assert self.world_size == recipe.num_workers, f"{self.world_size} workers for a recipe of {recipe.num_workers}"
        self.replica, self.num_replicas = self.rank // recipe.workers_per_replica, recipe.num_replicas
        assert recipe.zero_stage, "where nothing is sharded, plain torch does (train/steppers.py)"
        self._micro_steps = recipe.micro_steps
        self.precision = arithmetic_of_all(self._device, recipe.precision)
        loss = prepared(model, recipe)
        weight = output_weight(loss.model)
        self._engine, *_ = deepspeed.initialize(
            model=loss,
            model_parameters=parameter_groups(loss, recipe.weight_decay),
            config=deepspeed_config(recipe, self.precision),
        )
        if recipe.zero_stage == 3 and weight is not None:
            deepspeed.zero.register_external_parameter(loss, weight)  # used outside its own layer's forward

    def step(
        self, batches: Sequence[Batch], num_labels: int, learning_rate: float, judge: Callable[[float], None] = lambda _: None
    ) -> tuple[float, float]:
        """See Stepper."""
        assert len(batches) == self._micro_steps
        engine = self._engine
        engine.train()
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate
        # DeepSpeed divides by the micro-steps and averages over the workers; both are undone here, so that each target weighs the same
        scale = self.world_size * self._micro_steps / num_labels
        total = 0.0
        for number, batch in enumerate(batches, start=1):
            nll = self._forward(batch)
            engine.backward(nll * scale)
            total += float(nll.detach())
            if number == self._micro_steps:
                loss = self.total(total) / num_labels
                judge(loss)
            engine.step()
        engine.module.after_step()
        return loss, float(engine.get_global_grad_norm() or 0.0)  # none where float16 overflowed in the first step

    def nll(self, batch: Batch) -> float:
        """See Stepper."""
        self._engine.eval()
        with torch.no_grad():
            return float(self._forward(batch))

    def publish(self) -> None:
        """Take over what was loaded into the pieces; all workers must call it."""
        publish_masters(self._engine)

    def pieces(self) -> list[Piece]:
        """What a checkpoint holds: the stretches of trained parameters and optimizer state that this worker keeps."""
        return zero_pieces(self._engine, lambda name: name.removeprefix("model."))

    def weights(self) -> dict[str, Tensor]:
        """Every trained parameter, whole and in float32, by its name in the model; all workers must call it, rank 0 gets them."""
        from deepspeed.utils import safe_get_full_fp32_param

        found = {}
        for name, parameter in self._engine.module.named_parameters():
            if parameter.requires_grad:
                master = safe_get_full_fp32_param(parameter)
                if self.rank == 0:
                    found[name.removeprefix("model.")] = master.detach().cpu()
        return found

    def _forget(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:  # what has come since, such as the optimizer's state before the first step, was zero then
            for value in piece.state.values():
                if isinstance(value, Tensor):
                    value.zero_()

    def _forward(self, batch: Batch) -> Tensor:
        batch = batch.to(self._device)
        return self._engine(*batch.tensors)


def quiet_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for `device`, without its chatter and without compiling operators that training does not use."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    warnings.filterwarnings("ignore", module="deepspeed")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # only its inference all-reduce: 40 s of compiling saved
    return deepspeed
