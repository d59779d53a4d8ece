"""Even use of a mixture's experts: the penalty that its router is trained with.

Promise: taken over each sequence by itself and weighted by its targets, so that it does not depend on which worker or micro-batch a
sequence falls to (over a whole micro-batch, as it is usually taken, two workers would minimise something other than one). It
is 1 per target where the experts are used evenly, their number where one is used alone. Price: a softmax over the experts, per layer.
Source: Switch Transformers (arXiv 2101.03961), eq. 4; by sequence as DeepSeek-V3 does (2412.19437).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from train.corpus import IGNORED

__all__ = ["balance_penalty", "routes"]


def routes(decoder: nn.Module, config: PretrainedConfig) -> bool:
    """Whether a decoder has a router that its configuration wants balanced, and gives its logits when asked."""
    return bool(getattr(config, "router_aux_loss_coef", 0)) and "router_logits" in (getattr(decoder, "_can_record_outputs", None) or {})


def balance_penalty(router_logits: Sequence[Tensor], experts_per_token: int, labels_BL: Tensor) -> Tensor:
    """Σ over targets of E · Σₑ (share of its sequence's tokens sent to e) · (mean probability of e there), mean over the layers.

    `router_logits` has a tensor [B·L, E] per layer.
    """
    targets_B = (labels_BL != IGNORED).sum(1)
    used_BL1 = (labels_BL != IGNORED)[..., None].float()
    total = torch.zeros((), device=labels_BL.device)
    for logits in router_logits:
        probabilities_BLE = logits.float().softmax(-1).view(*labels_BL.shape, -1)
        chosen_BLK = probabilities_BLE.topk(experts_per_token, dim=-1).indices
        sent_BLE = torch.zeros_like(probabilities_BLE).scatter_(-1, chosen_BLK, 1.0 / experts_per_token)
        load_BE, mean_BE = ((x * used_BL1).sum(1) / targets_B.clamp(min=1)[:, None] for x in (sent_BLE, probabilities_BLE))
        total = total + (targets_B * probabilities_BLE.shape[-1] * (load_BE * mean_BE).sum(-1)).sum()
    return total / len(router_logits)
