"""What a training step takes on these machines: measured (or catalogued) speed of one worker, and stated allowances for all the rest.

Promise: seconds per step, per start and per checkpoint as sums of terms that can be read here. Price: none; measuring is measure.py's.
The constants for processors were set against whole runs of `sterna pretrain` on two CPU cores; those for accelerators are rules of
thumb, each with its reason, and the plan's interval on time is twice as wide for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from train.plan.memory import RUNTIME_BYTES, STATE_BYTES, Precision
from train.plan.shapes import ModelShape
from train.recipe import Recipe

__all__ = ["Machine", "Sample", "Throughput", "checkpoint_seconds", "pause_seconds", "start_seconds", "step_seconds"]

START_S = 28.0  # interpreter, torch, Ray Train, DeepSpeed and the export of the model, on two CPU cores
STEP_S = 0.03  # per step, whatever its size: two small all-reduces, the driver's news, the data
CONTENTION = 1.15  # workers of one machine share caches and memory; measured alone, they run faster
LINK_BYTES_PER_S = 0.8e9  # gloo between two processes of one machine
DISK_BYTES_PER_S = 0.3e9  # where nobody has measured it
COPY_BYTES_PER_S = 8e9  # an accelerator's state into host memory, while the loop stands still
HOST_UPDATES_PER_S = 4e8  # parameters that a worker's share of the host updates a second, when the optimizer is offloaded
HIDDEN = 0.7  # of the compute that collectives can hide behind
LEAST_EXPOSED = 0.1  # of a collective, however much compute there is
BUS_EFFICIENCY = 0.8  # of a link's data sheet, that collectives reach
RECOMPUTED = 4 / 3  # gradient checkpointing goes forward twice


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
    """What trains: `num_workers` workers, each with a device, on one or several machines."""

    num_workers: int
    memory_bytes: float
    """Of one worker's device."""
    precision: Precision
    throughput: Throughput
    name: str = "this machine"
    measured: bool = True
    """Whether the throughput was measured, or is the catalogue's."""
    accelerated: bool = False
    """Whether workers have accelerators with memory of their own; else a worker's memory is the host's."""
    num_machines: int = 1
    link_bytes_per_s: float = LINK_BYTES_PER_S
    """Between workers of a machine, each."""
    network_bytes_per_s: float = LINK_BYTES_PER_S
    """Between machines, each machine."""
    host_memory_bytes: float = math.inf
    """Beside an accelerator's own, a worker's share."""
    disk_bytes_per_s: float = DISK_BYTES_PER_S
    """At which a machine writes checkpoints."""
    runtime_bytes: float = RUNTIME_BYTES
    start_s: float = START_S
    failure_hours: float = 6300.0
    """Mean hours between failures of one machine that nobody announces (Llama 3's 54 days on 2,048 machines: 419 failures)."""

    @property
    def workers_per_machine(self) -> int:
        """Workers that share a machine's links."""
        return math.ceil(self.num_workers / self.num_machines)

    @property
    def worker_link_bytes_per_s(self) -> float:
        """What a worker sends in a collective over all workers: the slower of its link and its share of the network."""
        if self.num_machines == 1:
            return self.link_bytes_per_s * (BUS_EFFICIENCY if self.accelerated else 1.0)
        return BUS_EFFICIENCY * min(self.link_bytes_per_s, self.network_bytes_per_s / self.workers_per_machine)


def step_seconds(shape: ModelShape, recipe: Recipe, machine: Machine) -> float:
    """Wall time of one optimizer step: each worker's share of the batch, its shard of the update, gradients and weights exchanged."""
    flops_per_token = shape.train_flops_per_token(recipe.sequence_length) * (RECOMPUTED if recipe.gradient_checkpointing else 1.0)
    tokens = recipe.global_batch * recipe.sequence_length / machine.num_workers
    compute = tokens * flops_per_token / machine.throughput.flops_per_second(shape.train_flops_per_token(recipe.sequence_length))
    update = _update_seconds(shape, recipe, machine)
    if machine.num_workers == 1:
        return compute + update + STEP_S
    if machine.accelerated:
        return compute + update + _exposed_seconds(shape, recipe, machine, compute) + STEP_S
    width = 2 if machine.precision == "bfloat16" else 4
    exchanged = 2 * width * shape.num_parameters * (machine.num_workers - 1) / machine.num_workers
    return (compute + update) * CONTENTION + exchanged / machine.worker_link_bytes_per_s + STEP_S


def _update_seconds(shape: ModelShape, recipe: Recipe, machine: Machine) -> float:
    shards = machine.num_workers if recipe.zero_stage else recipe.tensor
    if recipe.offload != "none":
        return shape.num_parameters / shards / HOST_UPDATES_PER_S
    return machine.throughput.update_seconds(shape.num_parameters) / shards


def _exposed_seconds(shape: ModelShape, recipe: Recipe, machine: Machine, compute: float) -> float:
    """Collectives of accelerators: those of ZeRO hide behind the compute in part, those of a split matrix or sequence not at all."""
    width = 2 if machine.precision == "bfloat16" else 4
    others = machine.num_workers // recipe.tensor
    sent = width * shape.num_parameters / recipe.tensor * (others - 1) / others
    steps = recipe.micro_steps
    over = {0: 2.0, 1: 2.0, 2: 1.0 + steps, 3: 3.0 * steps}[recipe.zero_stage]
    collectives = sent * over / machine.worker_link_bytes_per_s
    within = BUS_EFFICIENCY * machine.link_bytes_per_s
    whole = recipe.global_batch / recipe.num_replicas * recipe.sequence_length * shape.hidden_size * width
    split = 0.0
    if recipe.tensor > 1:  # four sums of an activation a layer
        split = 8 * shape.num_layers * whole * (recipe.tensor - 1) / recipe.tensor / within
    if recipe.sequence > 1:  # heads for positions and back, both ways
        split = 8 * shape.num_layers * whole / recipe.sequence / within
    return max(LEAST_EXPOSED * collectives, collectives - HIDDEN * compute) + split


def checkpoint_seconds(shape: ModelShape, machine: Machine) -> float:
    """Weights and optimizer state to disk, each machine its share, and a second of ceremony."""
    return 1.0 + STATE_BYTES * shape.num_parameters / machine.num_machines / machine.disk_bytes_per_s


def pause_seconds(shape: ModelShape, machine: Machine) -> float:
    """What a checkpoint keeps from training: the copy into host memory, or, on processors, which write it themselves, all of it."""
    if not machine.accelerated:
        return checkpoint_seconds(shape, machine)
    return 0.2 + STATE_BYTES * shape.num_parameters / machine.num_workers / COPY_BYTES_PER_S


def start_seconds(shape: ModelShape, machine: Machine) -> float:
    """From the command to the first step, and from the last one to the written model."""
    return machine.start_s + checkpoint_seconds(shape, machine)
