"""Distillation: a model learns the distribution of another, token by token, not the one token that was written.

Promise: the sum over labelled positions of KL(teacher ‖ model) and its gradient, equal to the plain formula's up to rounding; the
teacher is either a model that is asked along the way, or its likeliest tokens as they were kept, all others being one bucket. Price:
train/chunked.py's; a live teacher's forward pass on top.
Source: Hinton et al. (arXiv 1503.02531); the bucket is divergence.py's, so the loss is the metric that candidates are judged by.

With p the teacher, z the model's logits and q = softmax(z): the gradient is q - p where the teacher's probability is known; in the bucket,
which has rest_p under the teacher, it is q - rest_p * softmax(z over the bucket): what is not known is left shaped as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from train.chunked import chunked_sum, wide
from train.corpus import IGNORED
from train.loss import Objective, decoder, output_weight
from train.segments import apart, honours_segments, positions_taken

__all__ = ["DistilLoss", "Target", "chunked_kl", "plain_kl"]

_CHUNK_ELEMENTS = 1 << 23  # logits of one chunk: 32 MiB in float32; the teacher's and the error take as much again
_LEAST = 1e-12


class Target(NamedTuple):
    """What the teacher says at N positions."""

    logprobs: Tensor
    """[N, k] of the tokens in `ids`, or [N, V] of all tokens."""
    ids: Tensor | None = None
    """[N, k]; None: every token."""


def plain_kl(logits_NV: Tensor, target: Target) -> Tensor:
    """KL(teacher ‖ softmax(logits)) [N] in nats, differentiable: the formula as it stands, which `chunked_kl` computes in pieces.

    >>> target = Target(torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[2, 0]]))
    >>> plain_kl(torch.tensor([[0.25, 0.05, 0.5, 0.2]]).log(), target).abs() < 1e-6  # the others share 0.25 in both
    tensor([True])
    """
    logq = torch.log_softmax(wide(logits_NV), dim=1)
    logp = target.logprobs.to(logq.dtype)
    if _whole(target, logq):
        return (logp.exp() * (logp - (logq if target.ids is None else logq.gather(1, target.ids)))).sum(1)
    assert target.ids is not None
    rest_p = _rest(logp)
    rest_logq = logq.scatter(1, target.ids, -torch.inf).logsumexp(1)
    return (logp.exp() * (logp - logq.gather(1, target.ids))).sum(1) + rest_p * (rest_p.log() - rest_logq)


def chunked_kl(hidden_NH: Tensor, weight_VH: Tensor, target: Callable[[slice], Target]) -> Tensor:
    """Σ KL(teacher ‖ softmax(hidden · weightᵀ)) over N positions; differentiable in hidden and weight.

    `target` is asked for the teacher's word on some of the positions at a time.
    """
    size = max(1, _CHUNK_ELEMENTS // weight_VH.shape[0])
    return chunked_sum(hidden_NH, weight_VH, size, lambda part, logits, _: _kl_and_error(logits, target(part)))


class DistilLoss(Objective):
    """KL from a teacher over batches that bring its likeliest tokens along (`Lessons`), or from a live `teacher` over any batches.

    With a live teacher, documents that are packed into one sequence see neither each other, whatever the two architectures; batches
    that bring the teacher's tokens have one document to a sequence. The teacher is no part of the module: nothing shards, trains or
    saves it.
    """

    def __init__(self, model: nn.Module, teacher: Any = None) -> None:
        super().__init__(model)
        self._teacher = [] if teacher is None else [teacher.eval().requires_grad_(False)]
        self._packs = all(honours_segments(decoder(m), m.config.get_text_config().vocab_size) for m in (self.model, *self._teacher))

    def forward(
        self, input_ids: Tensor, labels: Tensor, position_ids: Tensor, top_ids: Tensor | None = None, top_logprobs: Tensor | None = None
    ) -> Tensor:
        """Σ KL over positions whose label is not IGNORED; top_ids, top_logprobs [positions, k] in the order of the flat batch."""
        if top_logprobs is not None:
            assert top_ids is not None
            ids, logprobs = top_ids, top_logprobs
            return self._of(input_ids, labels, position_ids, lambda part: Target(logprobs[part], ids[part]))
        if self._packs:
            return self._from_teacher(input_ids, labels, position_ids)
        return torch.stack([self._from_teacher(*part) for part in apart(input_ids, labels, position_ids)]).sum()

    def _from_teacher(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor) -> Tensor:
        teacher = self._teacher[0].to(input_ids.device)
        with torch.no_grad():
            hidden, weight = _hidden(teacher, input_ids, labels, position_ids)

        def target(part: slice) -> Target:
            logits = hidden[part] if weight is None else hidden[part] @ weight.to(hidden.dtype).T
            return Target(torch.log_softmax(wide(logits), dim=1))

        return self._of(input_ids, labels, position_ids, target)

    def _of(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor, target: Callable[[slice], Target]) -> Tensor:
        hidden, weight = _hidden(self.model, input_ids, labels, position_ids)
        if weight is None:
            return plain_kl(hidden, target(slice(None))).sum()
        return chunked_kl(hidden, weight, target)


def _hidden(model: Any, input_ids: Tensor, labels: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """At the labelled positions: (hidden states, the output layer's matrix), or (logits, None) where they are more than a product."""
    weight, below = output_weight(model), decoder(model)
    read = below if weight is not None else model
    found = read(input_ids=input_ids, use_cache=False, **positions_taken(below, position_ids))
    kept = labels != IGNORED
    return (found.logits if weight is None else found.last_hidden_state)[kept], weight


def _kl_and_error(logits_NV: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """(KL [N], its gradient by the logits [N, V]) of one chunk."""
    normaliser = torch.logsumexp(logits_NV, dim=1, keepdim=True)
    logp, ids = target.logprobs.to(logits_NV.dtype), target.ids
    p, mine = logp.exp(), (logits_NV if ids is None else logits_NV.gather(1, ids)) - normaliser
    kl = (p * (logp - mine)).sum(1)
    q = (logits_NV - normaliser).exp_()
    if _whole(target, logits_NV):
        return kl, q.sub_(p) if ids is None else q.scatter_add_(1, ids, -p)
    assert ids is not None
    rest_p = _rest(logp)
    rest = logits_NV.scatter(1, ids, -torch.inf)
    of_rest = rest.logsumexp(1, keepdim=True)
    kl += rest_p * (rest_p.log() - (of_rest - normaliser)[:, 0])
    q -= rest.sub_(of_rest).exp_().mul_(rest_p[:, None])
    return kl, q.scatter_add_(1, ids, -p)


def _rest(logp: Tensor) -> Tensor:
    """[N]: the teacher's probability of all other tokens."""
    return (1 - logp.exp().sum(1)).clamp(min=_LEAST)


def _whole(target: Target, logits: Tensor) -> bool:
    return target.ids is None or target.ids.shape[1] == logits.shape[1]
