"""One run of a sweep: a small model trained in this process by the loop that trains large ones, judged on sequences that no run sees.

Promise: the recipe's own steps through `train.loop`, plain torch on one device; all runs of a sweep hold out the same sequences.
Price: its FLOPs; nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from train.corpus import Batch, Sequences
from train.mixture import Mixture, epoch_order

if TYPE_CHECKING:
    from cluster.artifact import Artifact
    from train.plan.ladder import Rung

__all__ = ["Part", "split", "train_rung"]


class Part:
    """Some sequences of a source, as a source."""

    def __init__(self, whole: Sequences, chosen: NDArray[np.int64]) -> None:
        self._whole, self._chosen = whole, chosen
        self.index: NDArray[np.int64] | None = None
        self.mixture: Mixture | None = None

    def __len__(self) -> int:
        return len(self._chosen)

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """See Source."""
        return self._whole.batch(self._chosen[indices])

    def num_labels(self, indices: NDArray[np.int64]) -> int:
        """See Source."""
        return self._whole.num_labels(self._chosen[indices])


def split(whole: Sequences, num_held_out: int, seed: int) -> tuple[Part, Part]:
    """(what is trained on, what is held out), the same for every run with this seed."""
    order = epoch_order(seed, 0, len(whole))
    return Part(whole, np.sort(order[num_held_out:])), Part(whole, np.sort(order[:num_held_out]))


def train_rung(rung: Rung, tokens: Artifact, num_held_out: int, threads: int) -> Mapping[str, Any]:
    """Train the rung's model and measure it: a row of the table of runs."""
    import torch

    from train.architectures import make_config, make_model
    from train.loop import held_out_loss, run
    from train.plain import PlainStepper
    from train.plan.measure import threads as computing_with
    from train.state import State

    started = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = rung.recipe
    trained, held_out = split(Sequences.open(tokens.local()), num_held_out, recipe.seed)
    with computing_with(threads):
        stepper = PlainStepper(make_model(make_config(rung.shape), seed=recipe.seed), recipe, device)
        state = run(stepper, trained, recipe, state=State())
        loss = held_out_loss(stepper, held_out, recipe.micro_batch)
    return {
        "name": rung.name,
        "parameters": rung.shape.num_parameters,
        "tokens": sum(record.tokens for record in state.records),
        "loss": loss,
        "training_loss": state.final_loss(),
        "embedding_parameters": rung.shape.num_embedding_parameters,
        "flops": rung.flops,
        "steps": recipe.steps,
        "global_batch": recipe.global_batch,
        "learning_rate": recipe.learning_rate,
        "seconds": time.monotonic() - started,
    }
