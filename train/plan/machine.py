"""What a training step takes on these machines: measured speed of one worker, and stated allowances for all that is not measured.

Promise: seconds per step, per start and per checkpoint as sums of terms that can be read here. Price: none; measuring is measure.py's.
The constants were set against whole runs of `sterna pretrain` on two CPU cores; the plan's interval on time covers their spread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from train.plan.memory import Precision
from train.plan.shapes import ModelShape
from train.recipe import Recipe

__all__ = ["FAILURE_EVERY_S", "Machine", "Sample", "Throughput", "checkpoint_seconds", "start_seconds", "step_seconds"]

START_S = 28.0  # interpreter, torch, Ray Train, DeepSpeed and the export of the model, on two CPU cores
STEP_S = 0.03  # per step, whatever its size: two small all-reduces, the driver's news, the data
CONTENTION = 1.15  # workers of one machine share caches and memory; measured alone, they run faster
LINK_BYTES_PER_S = 0.8e9  # gloo between two processes of one machine
DISK_BYTES_PER_S = 0.3e9
FAILURE_EVERY_S = 4 * 3600.0  # unnoticed loss of a worker, for the checkpoint interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A measured step on this machine."""

    shape: ModelShape
    flops_per_token: float
    """Forward and back."""
    seconds_per_token: float
    """Forward and back, of one worker."""
    update_seconds: float
    """One optimizer step on all parameters."""

    @property
    def flops_per_second(self) -> float:
        """What one worker sustains."""
        return self.flops_per_token / self.seconds_per_token


@dataclass(frozen=True, slots=True)
class Throughput:
    """Samples, from small shapes to large; between them the rate is interpolated over the logarithm of FLOPs per token."""

    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        assert self.samples
        assert all(a.flops_per_token < b.flops_per_token for a, b in pairwise(self.samples))

    def flops_per_second(self, flops_per_token: float) -> float:
        """Of one worker, for a shape that costs so much per token; beyond the samples, the nearest sample's."""
        if flops_per_token <= self.samples[0].flops_per_token:
            return self.samples[0].flops_per_second
        for low, high in pairwise(self.samples):
            if flops_per_token <= high.flops_per_token:
                way = math.log(flops_per_token / low.flops_per_token) / math.log(high.flops_per_token / low.flops_per_token)
                return low.flops_per_second + way * (high.flops_per_second - low.flops_per_second)
        return self.samples[-1].flops_per_second

    def update_seconds(self, parameters: int) -> float:
        """One optimizer step over so many parameters, at the samples' mean rate."""
        measured = sum(sample.shape.num_parameters for sample in self.samples)
        return sum(sample.update_seconds for sample in self.samples) * parameters / measured


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What trains."""

    num_workers: int
    memory_bytes: float
    """Of one worker."""
    precision: Precision
    throughput: Throughput


def step_seconds(shape: ModelShape, recipe: Recipe, machine: Machine) -> float:
    """Wall time of one optimizer step: each worker's share of the batch, its shard of the update, gradients and weights exchanged."""
    flops_per_token = shape.train_flops_per_token(recipe.sequence_length)
    tokens = recipe.global_batch * recipe.sequence_length / machine.num_workers
    compute = tokens * flops_per_token / machine.throughput.flops_per_second(flops_per_token)
    update = machine.throughput.update_seconds(shape.num_parameters) / (machine.num_workers if recipe.zero_stage else 1)
    if machine.num_workers == 1:
        return compute + update + STEP_S
    width = 2 if machine.precision == "bfloat16" else 4
    exchanged = 2 * width * shape.num_parameters * (machine.num_workers - 1) / machine.num_workers
    return (compute + update) * CONTENTION + exchanged / LINK_BYTES_PER_S + STEP_S


def checkpoint_seconds(shape: ModelShape) -> float:
    """Weights and optimizer state to disk, and a second of ceremony."""
    return 1.0 + 16 * shape.num_parameters / DISK_BYTES_PER_S


def start_seconds(shape: ModelShape) -> float:
    """From the command to the first step, and from the last one to the written model."""
    return START_S + checkpoint_seconds(shape)
