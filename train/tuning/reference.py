"""What a model thinks of answers before it is tuned: the reference that preferences are measured from.

Promise: Σ log p of each row's answer, in the arithmetic that training uses, so that the first margins are zero. Price: one pass over
the rows, spread over the cluster's processors, and 4 bytes a row; no second model is kept while training.
"""

from __future__ import annotations

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from cluster.runtime import num_cpus_available
from train.corpus import Sequences
from train.model_folder import load_model, open_model
from train.optimize.arithmetic import arithmetic_on
from train.tuning.preference_loss import log_likelihoods
from train.tuning.preferences import Pairs, trimmed

__all__ = ["likelihoods", "with_reference"]

_ROWS = 8  # at once
_ROWS_PER_TASK = 64  # at least: a task begins by loading the model


def with_reference(rows: Sequences, model: str, precision: str) -> Pairs:
    """The pairs in `rows`, with what the model in the folder `model` thinks of them; needs an attached cluster."""
    parts = np.array_split(np.arange(len(rows)), min(num_cpus_available(), -(-len(rows) // _ROWS_PER_TASK)))
    task = ray.remote(_judge).options(num_cpus=1, num_gpus=1 if ray.cluster_resources().get("GPU", 0) else 0)
    shared = ray.put(rows)
    return Pairs(rows, np.concatenate(ray.get([task.remote(shared, part, model, precision) for part in parts])))


def _judge(rows: Sequences, part: NDArray[np.int64], uri: str, precision: str) -> NDArray[np.float32]:
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(open_model(uri)[0], torch.float32).to(device).eval()
    arithmetic = arithmetic_on(device, precision)
    with torch.autocast(device.type, getattr(torch, arithmetic), enabled=arithmetic != "float32"):
        return likelihoods(model, rows, part)


@torch.no_grad()
def likelihoods(model: torch.nn.Module, rows: Sequences, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Σ log p of the answers in the rows at `indices`, in their order."""
    found = []
    for start in range(0, len(indices), _ROWS):
        batch = trimmed(rows.batch(indices[start : start + _ROWS])).to(next(model.parameters()).device)
        found.append(log_likelihoods(model, *batch.tensors).cpu().numpy())
    return np.concatenate(found).astype(np.float32)
