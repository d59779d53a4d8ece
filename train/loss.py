"""Cross-entropy of a causal model, without a [tokens × vocabulary] float32 tensor.

Promise: the sum over labelled positions of −log p(label), float32 (float64 for a float64 model), and its gradient,
equal to the plain computation up to rounding. Price: see train/chunked.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from train.chunked import chunked_sum, wide
from train.corpus import IGNORED
from train.experts import balance_penalty, routes
from train.segments import apart, honours_segments, positions_taken

__all__ = ["CausalLoss", "Objective", "chunk_size", "chunked_nll", "objective_of", "token_nll"]

_CHUNK_ELEMENTS = 1 << 24  # logits of one chunk: 64 MiB in float32
_LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale")  # families that alter logits after the output layer


class Objective(nn.Module):
    """A model as a module from a batch's tensors to the sum of its losses; what an optimizer or DeepSpeed wraps.

    Its forward takes `Batch.tensors`. One that changes its parameters between steps (AdaLoRA's ranks) overrides `after_step`.
    """

    z_loss: float = 0.0
    """Weight of the squared log-normaliser in the gradient (train.recipe.Recipe.z_loss); an objective of its own kind may ignore it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def after_step(self) -> None:
        """Called by every worker once the optimizer has made a step."""

    def memory(self) -> dict[str, Tensor]:
        """What it must remember from step to step beside its parameters: live float32 tensors by name, equal on every worker."""
        return {}


class CausalLoss(Objective):
    """Next-token prediction: B sequences of L tokens; `labels_BL` is already shifted: the target at a position is that position's label.

    Documents packed into a sequence see neither each other nor each other's losses: a model that does not keep them apart gets each
    as a sequence of its own (train/segments.py).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        below = decoder(model)
        config = _base(model).config
        self.keeps_apart = honours_segments(below, config.get_text_config().vocab_size)
        self._balance = config.router_aux_loss_coef if routes(below, config) else 0.0

    def forward(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor) -> Tensor:
        """Σ −log p(label) over positions whose label is not IGNORED, as a scalar tensor; its gradient has the z-loss in it, and that of
        evenly used experts."""
        if self.keeps_apart:
            return self._of(input_ids, labels, position_ids)
        return torch.stack([self._of(*part) for part in apart(input_ids, labels, position_ids)]).sum()

    def _of(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor) -> Tensor:
        weight, kept = output_weight(self.model), labels != IGNORED
        positions = positions_taken(decoder(self.model), position_ids)
        if weight is None:
            logits_BLV = self.model(input_ids=input_ids, use_cache=False, **positions).logits
            nll, _, normalizer = _of_logits(wide(logits_BLV[kept]), labels[kept])
            return nll.sum() + _gradient_only(self.z_loss * normalizer.square().sum())
        asked = {"output_router_logits": True} if self._balance else {}
        found = decoder(self.model)(input_ids=input_ids, use_cache=False, **positions, **asked)
        nll = chunked_nll(found.last_hidden_state[kept], weight, labels[kept], self.z_loss)
        if self._balance:
            penalty = balance_penalty(found.router_logits, _base(self.model).config.num_experts_per_tok, labels)
            return nll + _gradient_only(self._balance * penalty)
        return nll


def objective_of(model: nn.Module) -> Objective:
    """What to train: `model` itself if it brings its objective, else next-token prediction by it."""
    return model if isinstance(model, Objective) else CausalLoss(model)


def decoder(model: PreTrainedModel) -> nn.Module:
    """The part of the model below its output layer (of the base model, when an adapter wraps it)."""
    return _base(model).get_decoder()


def output_weight(model: PreTrainedModel) -> Tensor | None:
    """The output layer's matrix [V, H], or None where logits are more than hidden · matrixᵀ."""
    base = _base(model)
    head = base.get_output_embeddings()
    changed = any(getattr(base.config, name, None) not in (None, 1.0) for name in _LOGIT_CHANGES)
    plain = type(head) is nn.Linear or (isinstance(head, nn.Linear) and parametrize.is_parametrized(head, "weight"))
    if changed or not plain or head.bias is not None:
        return None
    return head.weight


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def chunked_nll(hidden_NH: Tensor, weight_VH: Tensor, labels_N: Tensor, z_loss: float = 0.0) -> Tensor:
    """Σ −log softmax(hidden · weightᵀ)[label] over N positions; differentiable in hidden and weight.

    The gradient is that of the sum plus `z_loss` · Σ log² Z, Z the softmax's normaliser (PaLM, arXiv 2204.02311); the value is the sum
    alone, so that it can be compared with other runs'.
    """

    def judge(part: slice, logits_NV: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        labels = labels_N[part]
        nll, logits_NV, normalizer = _of_logits(logits_NV, labels)
        if not wanted:
            return nll, None
        error = logits_NV.sub_(normalizer[:, None]).exp_()  # softmax, in place of the logits
        if z_loss:
            error *= 1 + 2 * z_loss * normalizer[:, None]  # d(log² Z) = 2 log Z · softmax
        error[torch.arange(len(nll), device=error.device), labels] -= 1
        return nll, error

    return chunked_sum(hidden_NH, weight_VH, chunk_size(weight_VH), judge)


@torch.no_grad()
def token_nll(model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor, labels: Tensor) -> Tensor:
    """−log p(label) per position [B, L], float32; 0 where the label is IGNORED."""
    found = torch.zeros(labels.shape, dtype=torch.float32, device=labels.device)
    kept = labels != IGNORED
    weight = output_weight(model)
    if weight is None:
        logits_NV = model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits[kept]
        found[kept] = nn.functional.cross_entropy(wide(logits_NV), labels[kept], reduction="none").float()
        return found
    hidden_NH = decoder(model)(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state[kept]
    size = chunk_size(weight)
    parts = [_nll(h, weight, y)[0] for h, y in zip(hidden_NH.split(size), labels[kept].split(size), strict=True)]
    found[kept] = torch.cat(parts).float()
    return found


def _nll(hidden_NH: Tensor, weight_VH: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(−log p per position, float32 logits, log-normaliser) of one chunk."""
    return _of_logits(wide(hidden_NH @ weight_VH.T), labels_N)


def _of_logits(logits_NV: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    normalizer_N = torch.logsumexp(logits_NV, dim=-1)
    return normalizer_N - logits_NV.gather(1, labels_N[:, None])[:, 0], logits_NV, normalizer_N


def _gradient_only(penalty: Tensor) -> Tensor:
    """Zero, with the gradient of `penalty`."""
    return penalty - penalty.detach()


def chunk_size(weight_VH: Tensor) -> int:
    """Positions whose logits are made at once."""
    return max(1, _CHUNK_ELEMENTS // weight_VH.shape[0])
