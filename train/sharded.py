"""The loop's step on DeepSpeed: ZeRO 0 to 3 over the workers of an initialised process group.

Promise: the same step as `PlainStepper`'s, sharded; weights come back whole and in float32 (the optimizer's masters),
whatever the stage. Price: DeepSpeed's import, and its collectives per step. Source: ZeRO (arXiv 1910.02054).
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from transformers import PreTrainedModel

from train.corpus import Batch
from train.loop import parameter_groups, use_bfloat16
from train.loss import CausalLoss, output_weight
from train.recipe import Recipe
from train.zero import deepspeed_config

__all__ = ["ShardedStepper"]

_TAG = "zero"  # the folder of DeepSpeed's files inside a checkpoint


class ShardedStepper:
    """A DeepSpeed engine around a model, as one worker of the process group sees it."""

    def __init__(self, model: PreTrainedModel, recipe: Recipe, device: torch.device | None = None) -> None:
        self._device = device or torch.device("cpu")
        deepspeed = _quiet_deepspeed(self._device)
        self.rank, self.world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        assert self.world_size == recipe.num_workers, f"{self.world_size} workers for a recipe of {recipe.num_workers}"
        self._micro_steps, self._stage = recipe.micro_steps, recipe.zero_stage
        bfloat16 = _all_use_bfloat16(recipe.precision, self._device)
        self.precision = "bfloat16" if bfloat16 else "float32"
        loss = CausalLoss(model)
        weight = output_weight(model)
        self._engine, *_ = deepspeed.initialize(
            model=loss,
            model_parameters=parameter_groups(loss, recipe.weight_decay),
            config=deepspeed_config(recipe, bfloat16=bfloat16),
        )
        if recipe.zero_stage == 3 and weight is not None:
            deepspeed.zero.register_external_parameter(loss, weight)  # used outside its own layer's forward

    def step(self, batches: Sequence[Batch], num_labels: int, learning_rate: float) -> tuple[float, float]:
        """See Stepper."""
        assert len(batches) == self._micro_steps
        engine = self._engine
        engine.train()
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate
        # DeepSpeed divides by the micro-steps and averages over the workers; both are undone here, so that each target weighs the same
        scale = self.world_size * self._micro_steps / num_labels
        total = 0.0
        for batch in batches:
            nll = self._forward(batch)
            engine.backward(nll * scale)
            norm = _norm(engine) if self._stage == 0 else 0.0  # stage 0 in float32 keeps no norm of its own
            engine.step()
            total += float(nll.detach())
        return self.total(total) / num_labels, float(engine.get_global_grad_norm() or norm)

    def nll(self, batch: Batch) -> float:
        """See Stepper."""
        self._engine.eval()
        with torch.no_grad():
            return float(self._forward(batch))

    def total(self, value: float) -> float:
        """See Stepper."""
        tensor = torch.tensor(value, dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(tensor)
        return float(tensor)

    def barrier(self) -> None:
        """Wait for every worker."""
        torch.distributed.barrier()

    def save(self, folder: Path) -> None:
        """Write this worker's part of weights and optimizer state into `folder`; all workers must call it."""
        self._engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        """Read back what all workers of an equally large group saved."""
        self._engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=False, load_lr_scheduler_states=False)

    def weights(self) -> dict[str, Tensor]:
        """Every trained parameter, whole and in float32, by its name in the model; all workers must call it, rank 0 gets them."""
        from deepspeed.utils import safe_get_full_fp32_param

        found = {}
        for name, parameter in self._engine.module.named_parameters():
            if parameter.requires_grad:
                master = safe_get_full_fp32_param(parameter)
                if self.rank == 0:  # without ZeRO in float32 there is no master: the parameter is it
                    found[name.removeprefix("model.")] = (parameter if master is None else master).detach().cpu()
        return found

    def _forward(self, batch: Batch) -> Tensor:
        batch = batch.to(self._device)
        return self._engine(batch.input_ids, batch.labels, batch.position_ids)


def _all_use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether every worker's machine would: they may differ, the arithmetic may not."""
    vote = torch.tensor(int(use_bfloat16(precision, device)), device=device)
    torch.distributed.all_reduce(vote, op=torch.distributed.ReduceOp.MIN)
    return bool(vote)


def _norm(engine: Any) -> float:
    grads = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0


def _quiet_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for `device`, without its chatter and without compiling operators that training does not use."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    warnings.filterwarnings("ignore", module="deepspeed")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # only its inference all-reduce: 40 s of compiling saved
    return deepspeed
