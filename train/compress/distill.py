"""`sterna distill`: a smaller student learns a teacher's distribution at every token, not the one token that was written.

Promise: pretraining with another objective (distil_loss.py): the same loop, workers, checkpoints and folder, so it grows, shrinks and goes
on as that does; the loss that is reported is the mean KL from the teacher in nats per token. Price: the teacher's forward pass at
every step, a third of its training cost, and its weights on every worker.
Source: Hinton et al. (arXiv 1503.02531); from a large model to a small one token by token: DistilBERT (1910.01108).
"""

from __future__ import annotations

from typing import Any

from cluster.artifact import Artifact, open_artifact
from cluster.settings import as_dict
from cluster.storage import absolute, digest_of
from train.compress.distill_config import DistillConfig
from train.config import PretrainConfig
from train.pretrain import pretrain, trained

__all__ = ["distill"]

_WARMUP_SHARE = 0.05
_DEFAULTS = {
    "steps": 1000,
    "global_batch": 32,
    "micro_batch": 4,
    "learning_rate": 5e-4,
    "num_workers": 2,
    "zero_stage": 2,
    "checkpoint_every": 100,
    "seed": 0,
}


def distill(config: DistillConfig) -> Artifact:
    """Train the student and write it to `config.output`."""
    given = {name: value for name, value in as_dict(config).items() if value is not None}
    ours = {name: value for name, value in given.items() if name not in ("student", "global_batch")}
    if config.plan is not None:
        return pretrain(PretrainConfig(**ours))
    assert config.student is not None
    assert config.tokens is not None
    tokens = open_artifact(config.tokens, made_by="tokenize")
    table = _DEFAULTS | {name: given[name] for name in _DEFAULTS if name in given}
    table |= {"sequence_length": tokens.manifest.metrics["sequence_length"], "warmup_steps": round(_WARMUP_SHARE * table["steps"])}
    plan: dict[str, Any] = {"model": {"from": absolute(config.student)}, "train": table}
    return trained(PretrainConfig(plan="", **ours), plan, digest_of(plan))
