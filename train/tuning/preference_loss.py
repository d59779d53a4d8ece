"""Direct preference optimisation: the chosen answer should gain likelihood on the rejected one, measured from the model before tuning.

Promise: Σ over pairs of −log σ(β · margin), margin = [log π(chosen) − log π₀(chosen)] − [log π(rejected) − log π₀(rejected)], where
π₀'s likelihoods come with the batch; so no second model is in memory. Price: the output layer's logits are computed again on the way
back, chunk by chunk. Source: DPO (arXiv 2305.18290).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from train.corpus import IGNORED
from train.loss import Objective, chunk_size, decoder, output_weight

__all__ = ["PreferenceLoss", "log_likelihoods"]


class PreferenceLoss(Objective):
    """DPO over batches whose rows are chosen, rejected, chosen, rejected, …"""

    def __init__(self, model: nn.Module, beta: float) -> None:
        super().__init__(model)
        self.beta = beta

    def forward(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor, reference: Tensor) -> Tensor:
        """Σ of the pairs' losses; reference [2 · pairs]."""
        gain = log_likelihoods(self.model, input_ids, labels, position_ids) - reference
        margin = gain[0::2] - gain[1::2]
        return -nn.functional.logsigmoid(self.beta * margin).sum()


def log_likelihoods(model: Any, input_ids: Tensor, labels: Tensor, position_ids: Tensor) -> Tensor:
    """Σ log p of each row's labels [B], float32, differentiable."""
    kept = labels != IGNORED
    weight = output_weight(model)
    if weight is None:
        logits_NV = model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits[kept]
        found = -nn.functional.cross_entropy(logits_NV.float(), labels[kept], reduction="none")
    else:
        hidden_NH = decoder(model)(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state[kept]
        size = chunk_size(weight)
        parts = zip(hidden_NH.split(size), labels[kept].split(size), strict=True)
        found = torch.cat([checkpoint(_log_p, hidden, weight, targets, use_reentrant=False) for hidden, targets in parts])
    rows = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)[kept]
    return torch.zeros(len(labels), device=labels.device).index_add(0, rows, found)


def _log_p(hidden_NH: Tensor, weight_VH: Tensor, labels_N: Tensor) -> Tensor:
    logits_NV = (hidden_NH @ weight_VH.to(hidden_NH.dtype).T).float()
    return -nn.functional.cross_entropy(logits_NV, labels_N, reduction="none")
