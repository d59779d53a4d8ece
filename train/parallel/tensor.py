"""Tensor parallelism: every matrix of a layer in parts, one on each worker of a group; by DeepSpeed's AutoTP.

Promise: queries, keys, values and the feed-forward layer's way in are cut by rows, the ways out by columns, as transformers' own plan for
the architecture says; norms, embedding and output layer are whole on every worker. Price: four sums over the group per layer and
micro-batch, of a whole activation each: for workers with a fast link. Source: Megatron-LM (arXiv 1909.08053), deepspeed/module_inject.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from transformers import PreTrainedModel

from train.corpus import Batch
from train.elastic.pieces import Piece
from train.loss import CausalLoss
from train.optimize.parameters import make_optimizers, parameter_groups
from train.optimize.prepare import prepared
from train.parallel.split import engine_config
from train.recipe import Recipe

__all__ = ["TensorSplit", "layer_specs", "stretches"]

_FAMILIES = ("llama", "mistral")
_CUTS = {"colwise": "column", "rowwise": "row"}


class TensorSplit:
    """One worker's part of every matrix. See train.parallel.split.Split."""

    def __init__(self, model: PreTrainedModel, recipe: Recipe, deepspeed: Any) -> None:
        specs = layer_specs(model, recipe.tensor)
        self._size, self.replica = recipe.tensor, torch.distributed.get_rank() // recipe.tensor
        self._loss = prepared(model.float(), recipe)
        if type(self._loss) is not CausalLoss:
            raise ValueError("tensor: is for whole models and next-token prediction; set it to 1 to tune with adapters or preferences")
        self._loss.config = model.config  # AutoTP looks for the number of key and value heads there
        parallel = {"autotp_size": recipe.tensor, "partition_config": {"use_default_specs": False, "layer_specs": specs}}
        self.engine, *_ = deepspeed.initialize(
            model=self._loss,
            model_parameters=parameter_groups(self._loss, recipe.weight_decay),
            optimizer=lambda _: self._make_optimizer(recipe),  # asked for once the matrices are in parts
            config=engine_config(recipe) | {"tensor_parallel": parallel},
        )
        self.optimizer: torch.optim.Optimizer = self.engine.optimizer
        self.nll = 0.0
        from deepspeed.module_inject.layers import LinearAllreduce, LinearLayer

        kinds = {LinearLayer: 0, LinearAllreduce: 1}
        self._cut: dict[int, tuple[nn.Module, int]] = {
            id(module.weight): (module, dim) for module in self._loss.modules() for kind, dim in kinds.items() if type(module) is kind
        }
        assert self._cut, "AutoTP cut no matrix"

    def step(self, batches: Sequence[Batch], scale: float) -> None:
        """See Split."""
        self.engine.train()
        for batch in batches:
            nll = self.engine(*batch.tensors)
            self.nll += float(nll.detach()) / self._size  # each worker of the group has all of it
            self.engine.backward(nll * scale)
            self.engine.step()

    def judge(self, batch: Batch) -> float:
        """See Split."""
        self.engine.eval()
        return float(self.engine(*batch.tensors))

    def parts(self) -> list[tuple[Tensor, float]]:
        """See Split."""
        return [(p, 1.0 if id(p) in self._cut else 1.0 / self._size) for _, p in self._named()]

    def pieces(self) -> list[Piece]:
        """See Split: a matrix cut by rows is one stretch of the whole, one cut by columns a stretch in each row."""
        return [piece for name, p in self._named() for piece in self._pieces_of(name, p)]

    def weights(self) -> dict[str, Tensor]:
        """See Split."""
        found = {}
        for name, p in self._named():
            whole = p.detach()
            if id(p) in self._cut:
                module, dim = self._cut[id(p)]
                shards = [torch.empty_like(whole) for _ in range(self._size)]
                torch.distributed.all_gather(shards, whole.contiguous(), group=module.mp_group)
                whole = torch.cat(shards, dim=dim)
            found[name] = whole.cpu()
        return found if torch.distributed.get_rank() == 0 else {}

    def _make_optimizer(self, recipe: Recipe) -> torch.optim.Optimizer:
        for p in self._loss.parameters():
            p.data = p.data.contiguous()  # a part cut by columns may still be a view of the whole
        return make_optimizers(self._loss, recipe)[0]

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self._loss.model.named_parameters() if p.requires_grad]

    def _pieces_of(self, name: str, p: nn.Parameter) -> Iterator[Piece]:
        state, on = self.optimizer.state[p], p.device
        if id(p) not in self._cut:
            yield Piece(name, 0, p.numel(), p, 0, state, shared=True, scalars_on=on)
            return
        module, dim = self._cut[id(p)]
        for start, count, offset in stretches(p.shape, dim, module.tp_index, self._size):
            yield Piece(name, start, count, p, offset, state, scalars_on=on)


def stretches(shape: Sequence[int], dim: int, index: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(start in the whole matrix, count, offset in the part) of each run of numbers of part `index` of `size` along `dim`, all flattened.

    >>> list(stretches((2, 3), 0, 1, 2)), list(stretches((2, 3), 1, 1, 2))
    ([(6, 6, 0)], [(3, 3, 0), (9, 3, 3)])
    """
    rows, columns = shape
    if dim == 0:
        yield index * rows * columns, rows * columns, 0
        return
    for row in range(rows):
        yield (row * size + index) * columns, columns, row * columns


def layer_specs(model: PreTrainedModel, size: int) -> list[dict[str, Any]]:
    """Which matrices are cut and how, as AutoTP takes it, from transformers' plan for the architecture.

    Raises ValueError for an architecture without one that is understood, and for heads or widths that `size` does not divide.
    """
    config = model.config
    plan = getattr(config, "base_model_tp_plan", None) or {}
    if config.model_type not in _FAMILIES or getattr(config, "attention_bias", False) or hasattr(model, "get_base_model"):
        raise ValueError(
            f"tensor: {type(model).__name__} cannot be cut by matrices here; that is done for whole models of {' and '.join(_FAMILIES)} "
            "(architectures dense and sliding); set tensor to 1"
        )
    for what in ("num_key_value_heads", "num_attention_heads", "intermediate_size"):
        if getattr(config, what) % size:
            raise ValueError(f"tensor: {what} {getattr(config, what)} cannot be shared among {size} workers")
    return [
        {"patterns": [r".*\." + name.replace(".", r"\.").replace("*", r"\d+") + r"\.weight$"], "partition_type": _CUTS[style]}
        for name, style in plan.items()
        if style in _CUTS
    ]
