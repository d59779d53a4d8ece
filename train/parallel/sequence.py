"""Sequence parallelism: each worker of a group holds a stretch of every sequence, and for attention some of its heads.

Promise: the loss and the gradients of one process; everything but attention needs only its own stretch, so activations are divided by the
group's size. It is an objective, so plain torch and every ZeRO stage run it unchanged: a worker's loss is the sum over its own positions.
Price: two exchanges per layer on the way forward and two on the way back, of a stretch's queries, keys, values and outputs; a [B, L, L]
mask of bits on every worker. Source: DeepSpeed-Ulysses (arXiv 2309.14509), whose own attention wants Flash Attention, which a CPU has not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import AttentionInterface

from train.corpus import IGNORED
from train.experts import routes
from train.loss import CausalLoss, chunked_nll, decoder, output_weight

__all__ = ["SequenceLoss"]

_NAME = "sterna_ulysses"


class SequenceLoss(CausalLoss):
    """Next-token prediction by a group of workers, all of which are given the same batch."""

    def __init__(self, model: nn.Module, num_stretches: int) -> None:
        """Groups are of `num_stretches` workers next to each other. All workers must make theirs, in the same order.

        Raises ValueError for a model whose attention cannot be divided by heads.
        """
        super().__init__(model)
        _check(model, self, num_stretches)
        self._size = num_stretches
        self._rank, self._group = _group_of(num_stretches)
        AttentionInterface.register(_NAME, _attention)
        model.set_attn_implementation(_NAME)
        self._window = getattr(model.config, "sliding_window", None)

    def forward(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor) -> Tensor:
        """Σ −log p over this worker's stretch of every sequence; while judging and not training, over all of them."""
        length = input_ids.shape[1] // self._size
        if length * self._size != input_ids.shape[1]:
            raise ValueError(f"sequence: {self._size} workers cannot split {input_ids.shape[1]} tokens evenly")
        mine = slice(self._rank * length, (self._rank + 1) * length)
        exchange = Exchange(self._group, self._size, _allowed(position_ids, self._window))
        found = decoder(self.model)(
            input_ids=input_ids[:, mine], position_ids=position_ids[:, mine].contiguous(), use_cache=False, exchange=exchange
        )
        kept, weight = labels[:, mine] != IGNORED, output_weight(self.model)
        assert weight is not None
        nll = chunked_nll(found.last_hidden_state[kept], weight, labels[:, mine][kept], self.z_loss)
        if not self.training:
            torch.distributed.all_reduce(nll, group=self._group)
        return nll


@dataclass(frozen=True, slots=True)
class Exchange:
    """What attention needs to know beyond its own stretch."""

    group: ProcessGroup
    size: int
    allowed_B1LL: Tensor
    """Whether a query may see a key, over whole sequences."""


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, exchange: Exchange, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: [B, heads, stretch, D] in, [B, stretch, heads, D] out."""
    groups = query.shape[1] // key.shape[1]
    if key.shape[1] % exchange.size:  # too few to share out: each query head gets its own copy
        key, value, groups = (*(x.repeat_interleave(groups, dim=1) for x in (key, value)), 1)
    heads, keys, values = (_Swap.apply(x, 1, 2, exchange) for x in (query, key, value))
    keys, values = (x.repeat_interleave(groups, dim=1) for x in (keys, values))
    found = nn.functional.scaled_dot_product_attention(heads, keys, values, attn_mask=exchange.allowed_B1LL, scale=scaling)
    return _Swap.apply(found, 2, 1, exchange).transpose(1, 2), None


class _Swap(torch.autograd.Function):
    """Give up a part of dimension `cut`, get the whole of dimension `join`; the way back is the same with both swapped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cut: int, join: int, exchange: Exchange) -> Tensor:
        ctx.back = (join, cut, exchange)
        return _swapped(x, cut, join, exchange)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return _swapped(grad, *ctx.back), None, None, None


def _swapped(x: Tensor, cut: int, join: int, exchange: Exchange) -> Tensor:
    sent = torch.stack(x.chunk(exchange.size, dim=cut)).contiguous()
    received = torch.empty_like(sent)
    torch.distributed.all_to_all_single(received, sent, group=exchange.group)
    return torch.cat(received.unbind(0), dim=join)


def _allowed(position_ids: Tensor, window: int | None) -> Tensor:
    """[B, 1, L, L]: a query sees keys of its own segment, not after it, and within the window."""
    segments_BL = (position_ids == 0).cumsum(1)
    places = torch.arange(position_ids.shape[1], device=position_ids.device)
    behind = places[:, None] - places[None, :]
    seen = behind >= 0 if window is None else (behind >= 0) & (behind < window)
    return (seen & (segments_BL[:, :, None] == segments_BL[:, None, :]))[:, None]


def _group_of(size: int) -> tuple[int, ProcessGroup]:
    """This worker's place in its group, and the group; every worker takes part in making every group."""
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    groups = [torch.distributed.new_group(list(range(first, first + size))) for first in range(0, world, size)]
    return rank % size, groups[rank // size]


def _check(model: Any, loss: CausalLoss, size: int) -> None:
    name = type(model).__name__
    if not loss.keeps_apart or not getattr(model, "_supports_attention_backend", False) or output_weight(model) is None:
        raise ValueError(
            f"sequence: {name} carries a state or distances along the sequence that cannot be split; it needs a model of attention with "
            "rotary positions (architecture dense or sliding), or sequence = 1"
        )
    if routes(decoder(model), model.config):
        raise ValueError(f"sequence: {name} balances its experts over whole sequences, which no worker would see; set sequence to 1")
    if model.config.num_attention_heads % size:
        raise ValueError(f"sequence: {model.config.num_attention_heads} attention heads cannot be shared among {size} workers")
