"""How workers share a model and a batch: ZeRO stage, offload, checkpointing of activations, splits, micro-batch; the fastest that fits.

Promise: of all layouts that `sterna pretrain` can run and that fit into memory, the one with the fewest predicted seconds a token, of
equal ones the plainest; where none fits, the leanest, so that it can be said by how much it does not. Price: some hundred formulas a
shape. Sources: ZeRO (Rajbhandari et al. 2020), ZeRO-Offload (Ren et al. 2021), Megatron-LM (Shoeybi et al. 2019), DeepSpeed-Ulysses
(Jacobs et al. 2023). Pipelines are not planned: with them ZeRO is off, and of what fits here tensor parallelism inside a machine is faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from train.plan.machine import Machine, step_seconds
from train.plan.memory import Footprint, footprint, host_bytes
from train.plan.shapes import ModelShape
from train.recipe import Recipe

__all__ = ["Layout", "Placed", "arrange"]

MICRO_TOKENS = 8192  # of a forward pass of a processor; enough to keep its matrix products wide
ACCELERATED_MICRO_TOKENS = 65536
ALIKE = 1.01  # a plainer layout is worth one percent of time
WIDER = 2.0  # a batch may be so many times the one wanted before splitting models is considered instead
_SPLITTABLE = ("dense", "sliding")
_SPLITS = (2, 4, 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Who holds what."""

    zero_stage: int
    micro_batch: int
    offload: Literal["none", "optimizer", "parameters"] = "none"
    gradient_checkpointing: bool = False
    tensor: int = 1
    sequence: int = 1


@dataclass(frozen=True, slots=True)
class Placed:
    """A recipe in a layout, and what it takes."""

    recipe: Recipe
    memory: Footprint
    host: float
    """Bytes of host memory beside an accelerator's own, a worker's."""
    seconds_per_sequence: float

    def fits(self, machine: Machine) -> bool:
        """Whether device and host hold it."""
        return self.memory.total <= machine.memory_bytes and (not machine.accelerated or self.host <= machine.host_memory_bytes)


def arrange(shape: ModelShape, wanted_batch: float, recipe: Recipe, machine: Machine, num_sequences: int) -> Placed:
    """`recipe` with the batch nearest to `wanted_batch` sequences and the layout that trains it fastest.

    The recipe's own batch and layout count for nothing.
    """
    best: Placed | None = None
    leanest: Placed | None = None
    for layout in _layouts(shape, wanted_batch, recipe.sequence_length, machine, num_sequences):
        placed = _placed(shape, wanted_batch, recipe, layout, machine, num_sequences)
        if leanest is None or placed.memory.total < leanest.memory.total:
            leanest = placed
        if placed.fits(machine) and (best is None or placed.seconds_per_sequence * ALIKE < best.seconds_per_sequence):
            best = placed
    assert leanest is not None
    return best or leanest


def _layouts(shape: ModelShape, wanted: float, length: int, machine: Machine, num_sequences: int) -> Iterator[Layout]:
    """From the plainest to the most elaborate."""
    workers = machine.num_workers
    most = _share(wanted, workers, num_sequences)
    micros = _halvings(min(most, max(1, (ACCELERATED_MICRO_TOKENS if machine.accelerated else MICRO_TOKENS) // length)))
    stages = (0,) if machine.accelerated and workers == 1 else (1, 2, 3) if machine.accelerated else (2, 3)
    for checkpointing in (False, True) if machine.accelerated else (False,):
        for stage in stages:
            for micro in micros:
                yield Layout(zero_stage=stage, micro_batch=micro, gradient_checkpointing=checkpointing)
    if not machine.accelerated:
        return
    yield Layout(zero_stage=2, micro_batch=micros[0], offload="optimizer", gradient_checkpointing=True)
    yield Layout(zero_stage=2, micro_batch=1, offload="optimizer", gradient_checkpointing=True)
    yield Layout(zero_stage=3, micro_batch=1, offload="parameters", gradient_checkpointing=True)
    yield from _splits(shape, wanted, length, machine)


def _splits(shape: ModelShape, wanted: float, length: int, machine: Machine) -> Iterator[Layout]:
    """Where data parallelism alone makes the batch too large, or one sequence is too long for a device."""
    if shape.architecture not in _SPLITTABLE:
        return
    for size in _SPLITS:
        if machine.num_workers % size or size > machine.workers_per_machine:
            continue
        fewer = shape.num_heads % size == 0 and shape.num_kv_heads % size == 0
        if length % size == 0 and shape.num_heads % size == 0:
            for stage in (1, 3):
                yield Layout(zero_stage=stage, micro_batch=1, sequence=size, gradient_checkpointing=True)
        if fewer and shape.intermediate_size % size == 0:
            yield Layout(zero_stage=0, micro_batch=max(1, round(wanted * size / machine.num_workers)), tensor=size)
            yield Layout(zero_stage=0, micro_batch=1, tensor=size, gradient_checkpointing=True)


def _placed(shape: ModelShape, wanted: float, recipe: Recipe, layout: Layout, machine: Machine, num_sequences: int) -> Placed:
    replicas = machine.num_workers // (layout.tensor * layout.sequence)
    share = _share(wanted, replicas, num_sequences)
    micro = min(layout.micro_batch, share)
    batch = replicas * micro * max(1, share // micro)
    made = replace(
        recipe, global_batch=batch, micro_batch=micro, zero_stage=layout.zero_stage, offload=layout.offload,
        gradient_checkpointing=layout.gradient_checkpointing, tensor=layout.tensor, sequence=layout.sequence,
        num_workers=machine.num_workers, precision=machine.precision,
    )  # fmt: skip
    memory = footprint(
        shape, zero_stage=layout.zero_stage, num_workers=machine.num_workers, micro_batch=micro,
        sequence_length=recipe.sequence_length, precision=machine.precision, offload=layout.offload,
        gradient_checkpointing=layout.gradient_checkpointing, tensor=layout.tensor, sequence=layout.sequence,
        on_processor=not machine.accelerated, runtime_bytes=machine.runtime_bytes,
    )  # fmt: skip
    host = host_bytes(shape, zero_stage=layout.zero_stage, num_workers=machine.num_workers, tensor=layout.tensor, offload=layout.offload)
    # of a batch beyond twice the wanted one, only that much is worth its time
    worth = min(batch, max(WIDER * wanted, 1.0)) if machine.accelerated else batch
    return Placed(made, memory, host, step_seconds(shape, made, machine) / worth)


def _share(wanted: float, replicas: int, num_sequences: int) -> int:
    """Sequences of a batch that one replica takes."""
    return max(1, min(round(wanted / replicas), num_sequences // replicas))


def _halvings(size: int) -> list[int]:
    """size, size/2, …, 1.

    >>> _halvings(12)
    [12, 6, 3, 1]
    """
    return [size] if size == 1 else [size, *_halvings(size // 2)]
