"""Joint passes on a cluster: the search's prompts dealt to actors, each with a probe of its own.

Promise: the traces of a single probe (to rounding: batches are cut otherwise), in the same order; an actor whose node is taken
away is made anew elsewhere and its part judged again. Price: the model once per actor; a plan's weights travel once per node.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import ray
import torch
from torch import Tensor

from train.compress.divergence import Reference, Trace
from train.compress.probe import Probe

__all__ = ["Spread"]


class Spread:
    """Judges plans as `Probe` does, on `num_parts` processors of the Ray cluster that this process is attached to."""

    def __init__(self, model: Any, reference: Reference, num_parts: int) -> None:
        """`model`: a transformers causal language model of any number type; it is judged in float32 and left alone."""
        self.reference, self.passes = reference, 0.0
        by_length = sorted(range(len(reference.prompts)), key=lambda i: len(reference.prompts[i]) + len(reference.completions[i]))
        self._rows = [part for part in (by_length[start::num_parts] for start in range(num_parts)) if part]
        shared = ray.put(copy.deepcopy(model).float())
        actor = ray.remote(_Part).options(num_cpus=1, max_restarts=-1, max_task_retries=-1)
        self._actors = [actor.remote(shared, _some(reference, rows)) for rows in self._rows]

    def traces(self, plan: Mapping[str, Tensor]) -> list[Trace]:
        """Every completion's trace, in the reference's order, with the weights of the modules in `plan` exchanged."""
        sent = ray.put({name: weight.numpy() for name, weight in plan.items()})
        found: list[Any] = [None] * len(self.reference.prompts)
        answers = ray.get([actor.traces.remote(sent) for actor in self._actors])
        for rows, (traces, _) in zip(self._rows, answers, strict=True):
            for row, trace in zip(rows, traces, strict=True):
                found[row] = trace
        self.passes += sum(passes * len(rows) for rows, (_, passes) in zip(self._rows, answers, strict=True)) / len(found)
        return found

    def close(self) -> None:
        """Let the actors go."""
        for actor in self._actors:
            ray.kill(actor)


def _some(reference: Reference, rows: list[int]) -> Reference:
    return Reference(*(tuple(getattr(reference, name)[row] for row in rows) for name in Reference.__slots__))


class _Part:
    """A probe of some of the prompts, in an actor."""

    def __init__(self, model: Any, reference: Reference) -> None:
        self._probe = Probe(copy.deepcopy(model), reference)  # what comes from the object store cannot be written

    def traces(self, plan: Mapping[str, Any]) -> tuple[list[Trace], float]:
        before = self._probe.passes
        traces = self._probe.traces({name: torch.from_numpy(weight.copy()) for name, weight in plan.items()})
        return traces, self._probe.passes - before
