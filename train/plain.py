"""The loop's step in plain torch: one process, or several that hold the same model and share each batch.

Promise: the reference for every other stepper; it needs neither Ray nor DeepSpeed. Float32 weights, bfloat16 or float16 arithmetic by
autocast (float16 with a loss scale that adapts). Price: weights, gradients and optimizer state whole on every worker.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed
from torch import Tensor, nn
from transformers import PreTrainedModel

from train.corpus import Batch
from train.elastic.pieces import Piece, pieces_of_optimizer
from train.member import Member
from train.optimize.arithmetic import arithmetic_of_all
from train.optimize.parameters import make_optimizers
from train.optimize.prepare import prepared
from train.recipe import Recipe

__all__ = ["PlainStepper"]

_BUCKET_ELEMENTS = 20_000_000  # gradients exchanged at once


class PlainStepper(Member):
    """Plain torch: alone, or as one worker of the process group that is there."""

    def __init__(self, model: PreTrainedModel, recipe: Recipe, device: torch.device | None = None) -> None:
        super().__init__(device or torch.device("cpu"), alone=recipe.num_workers == 1 or not torch.distributed.is_initialized())
        self.replica, self.num_replicas = self.rank // recipe.workers_per_replica, self.world_size // recipe.workers_per_replica
        self.precision = arithmetic_of_all(self._device, recipe.precision)
        self._recipe = recipe
        self._loss = prepared(model.float().to(self._device), recipe)
        self._optimizers = make_optimizers(self._loss, recipe, self.rank, self.world_size)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self.precision == "float16")

    def step(
        self, batches: Sequence[Batch], num_labels: int, learning_rate: float, judge: Callable[[float], None] = lambda _: None
    ) -> tuple[float, float]:
        """See Stepper."""
        self._loss.train()
        total = torch.zeros((), device=self._device)
        for batch in batches:
            nll = self._nll(batch)
            self._scaler.scale(nll / num_labels).backward()
            total += nll.detach()
        loss = self.total(float(total)) / num_labels
        judge(loss)
        norm = self._update(learning_rate)
        self._loss.after_step()
        return loss, norm

    def nll(self, batch: Batch) -> float:
        """See Stepper."""
        self._loss.eval()
        with torch.no_grad():
            return float(self._nll(batch))

    def pieces(self) -> list[Piece]:
        """What a checkpoint holds: every trained parameter, whole, with its optimizer's state, and the objective's memory."""
        named = self._trained()
        pieces = [piece for optimizer in self._optimizers for piece in pieces_of_optimizer(named, optimizer)]
        return pieces + [Piece(name, 0, t.numel(), t, 0, {}, shared=True) for name, t in self._loss.memory().items()]

    def weights(self) -> dict[str, Tensor]:
        """Every trained parameter by its name in the model."""
        return {name: p.detach() for name, p in self._trained()}

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self._loss.model.named_parameters() if p.requires_grad]

    def _nll(self, batch: Batch) -> Tensor:
        dtype = torch.float16 if self.precision == "float16" else torch.bfloat16
        with torch.autocast(self._device.type, dtype, enabled=self.precision != "float32"):
            return self._loss(*batch.to(self._device).tensors)

    def _update(self, learning_rate: float) -> float:
        """Exchange, clip and apply the gradients; gives their norm."""
        parameters = [p for _, p in self._trained()]
        for p in parameters:  # one that no token reached moves by decay and momentum alone, whoever it is
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        if not self._alone:
            _add_up([p.grad for p in parameters])
        for optimizer in self._optimizers:
            self._scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._recipe.clip or math.inf)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            self._scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self._scaler.update()
        return float(norm)


def _add_up(gradients: Sequence[Tensor]) -> None:
    """Replace each gradient by its sum over the workers, several at a time."""
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        torch.distributed.all_reduce(flat)
        for gradient, part in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and sum(g.numel() for g in bucket) + gradient.numel() > _BUCKET_ELEMENTS:
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
