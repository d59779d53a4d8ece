"""Pipeline parallelism: each worker of a group holds some of the layers, and micro-batches pass from one to the next; by DeepSpeed.

Promise: the step of one process; layers are dealt so that the workers hold about as many weights each; a tied embedding is held by the
first and the last worker, which add up its gradients. Price: with m micro-batches and p workers a worker is idle (p - 1) / (m + p - 1) of
the time; the loss is known to the last worker only, until it tells the others. Source: DeepSpeed's PipelineModule and its one-forward
one-backward schedule (PipeDream-Flush, arXiv 2006.09503).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from train.corpus import IGNORED, Batch
from train.elastic.pieces import Piece
from train.loss import chunked_nll, output_weight
from train.optimize.parameters import make_optimizers, parameter_groups
from train.parallel.split import engine_config
from train.recipe import Recipe

__all__ = ["PipelineSplit"]

_FAMILIES = ("llama", "mistral")
_TIED = "embedding"


class PipelineSplit:
    """One worker's layers. See train.parallel.split.Split."""

    def __init__(self, model: PreTrainedModel, recipe: Recipe, deepspeed: Any) -> None:
        _check(model, recipe.pipeline)
        from deepspeed import pipe

        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)  # a PipelineModule asks for its rank before `initialize`
        model = model.float()
        names = {id(p): name for name, p in model.named_parameters()}
        self._z_loss, self._scale, self.nll = recipe.z_loss, 1.0, 0.0
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its seeds
            module = pipe.PipelineModule(layers=_layers(model, pipe), num_stages=recipe.pipeline, loss_fn=self._loss, dynamic_shape=True)
        self.engine, *_ = deepspeed.initialize(
            model=module,
            model_parameters=parameter_groups(module, recipe.weight_decay),
            optimizer=lambda _: make_optimizers(module, recipe)[0],
            config=engine_config(recipe),
        )
        self.optimizer: torch.optim.Optimizer = self.engine.optimizer
        self.replica = self.engine.grid.get_data_parallel_id()
        self._group = self.engine.grid.get_pipe_parallel_group()
        self._named = [(names[id(p)], p) for p in module.parameters() if p.requires_grad]
        self._tied = {id(p) for tied in module.tied_modules.values() for p in tied.parameters()}

    def step(self, batches: Sequence[Batch], scale: float) -> None:
        """See Split."""
        self._scale = scale
        self.engine.train_batch(iter([_fed(batch) for batch in batches]))

    def judge(self, batch: Batch) -> float:
        """See Split."""
        self.nll = 0.0
        self.engine.eval_batch(iter([_fed(batch)]), reduce_output=None, bcast_loss=False, num_micro_batches=1)
        total = torch.tensor(self.nll, dtype=torch.float64, device=self.engine.device)
        torch.distributed.all_reduce(total, group=self._group)  # only the last worker of the group has any
        return float(total)

    def parts(self) -> list[tuple[Tensor, float]]:
        """See Split."""
        return [(p, 0.5 if id(p) in self._tied else 1.0) for _, p in self._named]

    def pieces(self) -> list[Piece]:
        """See Split."""
        return [Piece(name, 0, p.numel(), p, 0, self.optimizer.state[p], scalars_on=p.device) for name, p in self._named]

    def weights(self) -> dict[str, Tensor]:
        """See Split."""
        mine = {name: p.detach().cpu() for name, p in self._named} if self.replica == 0 else {}
        first = torch.distributed.get_rank() == 0
        everyone: list[Any] | None = [None] * torch.distributed.get_world_size() if first else None
        torch.distributed.gather_object(mine, everyone)
        return {name: weight for theirs in everyone or () for name, weight in theirs.items()}

    def _loss(self, outputs: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        """Of a micro-batch, on the last worker: its hidden states and the output layer's matrix came out of the last layer."""
        hidden, weight = outputs
        kept = labels != IGNORED
        nll = chunked_nll(hidden[kept], weight, labels[kept], self._z_loss)
        self.nll += float(nll.detach())
        return nll * self._scale


class _Embedding(nn.Module):
    """(tokens, positions) -> (hidden, positions)."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, fed: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        tokens, positions = fed
        return self.embedding(tokens), positions


class _Layer(nn.Module):
    """(hidden, positions) -> the same, one layer on; the mask is made anew in each, since only these two travel."""

    def __init__(self, layer: nn.Module, rotary: nn.Module, config: Any) -> None:
        super().__init__()
        self.layer, self.rotary, self.config = layer, rotary, config
        self.mask = create_causal_mask if getattr(config, "sliding_window", None) is None else create_sliding_window_causal_mask

    def forward(self, fed: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        hidden, positions = fed
        mask = self.mask(
            config=self.config, inputs_embeds=hidden, attention_mask=None, past_key_values=None, position_ids=positions
        )  # fmt: skip
        rotated = self.rotary(hidden, position_ids=positions)
        return self.layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotated), positions


class _Norm(nn.Module):
    """(hidden, positions) -> the same, normalised."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, fed: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.norm(fed[0]), fed[1]


class _Head(nn.Module):
    """(hidden, positions) -> (hidden, the output layer's matrix)."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, fed: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return fed[0], self.head.weight


def _layers(model: PreTrainedModel, pipe: Any) -> list[Any]:
    base = model.get_decoder()
    tied = model.get_output_embeddings().weight is base.embed_tokens.weight
    middle = [*(_Layer(layer, base.rotary_emb, model.config) for layer in base.layers), _Norm(base.norm)]
    if not tied:
        return [_Embedding(base.embed_tokens), *middle, _Head(model.get_output_embeddings())]
    ends = [
        pipe.TiedLayerSpec(_TIED, _Embedding, base.embed_tokens, forward_fn=forward, tied_weight_attr="embedding.weight")
        for forward in (None, _with_matrix)
    ]
    return [ends[0], *middle, ends[1]]


def _with_matrix(module: _Embedding, fed: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return fed[0], module.embedding.weight


def _fed(batch: Batch) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """As DeepSpeed takes a micro-batch: what the first worker gets, what the last gets."""
    return (batch.input_ids, batch.position_ids), batch.labels


def _check(model: Any, stages: int) -> None:
    if getattr(model.config, "model_type", None) not in _FAMILIES or hasattr(model, "get_base_model") or output_weight(model) is None:
        raise ValueError(
            f"pipeline: {type(model).__name__} cannot be cut by layers here; that is done for whole models of {' and '.join(_FAMILIES)} "
            "(architectures dense and sliding); set pipeline to 1"
        )
    if len(model.get_decoder().layers) < stages:
        raise ValueError(f"pipeline: {len(model.get_decoder().layers)} layers cannot be dealt to {stages} workers")
