"""Machines of the catalogue as the planner sees machines: their speed from data sheets and the utilisation that others reach.

Promise: marked as not measured, everywhere it is shown; a narrow model is slower than its FLOPs say, as on every accelerator. Price:
none. The half-width is a rule of thumb: at 512 a matrix product keeps about half of what a wide one does.
"""

from __future__ import annotations

from train.plan.catalogue import Accelerator, Fleet
from train.plan.machine import Machine, Sample, Throughput
from train.plan.memory import Precision
from train.plan.shapes import Architecture, ModelShape, shape_of_width

__all__ = ["USABLE_MEMORY", "rented"]

USABLE_MEMORY = 0.92
"""Of an accelerator's memory, beside what its driver and collectives take."""
_WIDTHS = (256, 512, 1024, 2048, 4096, 8192)
_HALF_WIDTH = 512.0
_UPDATE_BYTES = 30.0  # that fused AdamW reads and writes of a parameter
_BANDWIDTH_SHARE = 0.7
_RUNTIME_BYTES = 1.5e9  # CUDA's context and libraries, beside what `USABLE_MEMORY` leaves out
_START_S = 90.0
_DISK_BYTES_PER_S = 1e9
_FLOAT32_SHARE = 0.5  # of the bfloat16 rate, as TF32 has it


def rented(
    fleet: Fleet,
    *,
    vocab_size: int,
    sequence_length: int,
    architecture: Architecture = "dense",
    precision: Precision = "bfloat16",
    num_workers: int | None = None,
    memory_bytes: float | None = None,
) -> Machine:
    """`fleet` as a machine; ValueError where more workers or memory is wanted than it has."""
    device = fleet.accelerator
    _refuse_too_much(fleet, num_workers, memory_bytes)
    shapes = [shape_of_width(w, vocab_size=vocab_size, max_length=sequence_length, architecture=architecture) for w in _WIDTHS]
    return Machine(
        num_workers=num_workers or fleet.num_accelerators,
        memory_bytes=memory_bytes or device.memory_bytes * USABLE_MEMORY,
        precision=precision,
        throughput=Throughput(tuple(_sample(shape, sequence_length, device, precision) for shape in shapes)),
        name=str(fleet),
        measured=False,
        accelerated=True,
        num_machines=fleet.num_machines,
        link_bytes_per_s=device.link_bytes_per_second,
        network_bytes_per_s=fleet.machine.network_bytes_per_second,
        host_memory_bytes=fleet.machine.host_memory_bytes / fleet.machine.count,
        disk_bytes_per_s=_DISK_BYTES_PER_S,
        runtime_bytes=_RUNTIME_BYTES,
        start_s=_START_S,
    )


def _sample(shape: ModelShape, sequence_length: int, device: Accelerator, precision: Precision) -> Sample:
    """What a measurement would have said, by the data sheet."""
    peak = device.peak_flops * device.utilisation * (1.0 if precision == "bfloat16" else _FLOAT32_SHARE)
    rate = peak * shape.hidden_size / (shape.hidden_size + _HALF_WIDTH)
    per_token = shape.train_flops_per_token(sequence_length)
    update = _UPDATE_BYTES * shape.num_parameters / (device.bytes_per_second * _BANDWIDTH_SHARE)
    return Sample(shape=shape, flops_per_token=per_token, seconds_per_token=per_token / rate, update_seconds=update)


def _refuse_too_much(fleet: Fleet, workers: int | None, memory_bytes: float | None) -> None:
    device = fleet.accelerator
    if workers is not None and workers > fleet.num_accelerators:
        short = workers - fleet.num_accelerators
        raise ValueError(f"num_workers: {workers} workers need as many accelerators; {fleet} are {short} too few")
    if memory_bytes is not None and memory_bytes > device.memory_bytes:
        raise ValueError(
            f"memory_bytes: {memory_bytes / 1e9:,.1f} GB are {(memory_bytes - device.memory_bytes) / 1e9:,.1f} GB more than "
            f"a {fleet.accelerator_name} has ({device.memory_bytes / 1e9:.0f} GB); leave it out"
        )
