"""This machine as the planner sees machines: its speed, memory and disk, measured in seconds.

Promise: steps are timed on the user's own tokens with the threads that a worker will have, the disk by writing where the plan is
written. Price: two probe models of a few seconds each, 32 MB written. The machine must be like the ones that will train.
"""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.console import say
from train.plan.budget import probe_shapes
from train.plan.config import Budget, PlanConfig
from train.plan.machine import Machine, Throughput
from train.plan.outlook import Data
from train.plan.rented import USABLE_MEMORY

if TYPE_CHECKING:
    import torch

__all__ = ["local_machine", "measured_table", "written_per_second"]

_MEMORY_SHARE = 0.9  # of the machine's memory that its workers may use between them
_WRITTEN = 32 * 2**20
_ACCELERATED: dict[str, Any] = {"accelerated": True, "link_bytes_per_s": 25e9, "runtime_bytes": 1.5e9, "start_s": 60.0}


def local_machine(config: PlanConfig, folder: Path, data: Data, budget: Budget, disk: Path) -> Machine:
    """This machine as its workers would share it, measured on the tokens in `folder`; checkpoints go to where `disk` is."""
    import torch

    from train.corpus import Sequences
    from train.optimize.arithmetic import use_bfloat16
    from train.plan.measure import measure, threads

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    workers = config.num_workers or (torch.cuda.device_count() if device.type == "cuda" else 2)
    precision = "bfloat16" if use_bfloat16(config.precision, device) else "float32"
    sequences, samples = Sequences.open(folder), []
    with threads(_threads_per_worker(workers)):
        for shape in probe_shapes(data, budget, workers, max_parameters=config.max_params, architecture=config.architecture):
            samples.append(measure(shape, sequences, precision=precision, device=device))
            rate = 1 / samples[-1].seconds_per_token
            say(f"measured {shape.num_parameters / 1e6:.1f} M parameters: {rate:,.0f} tokens/s a worker")
    return Machine(
        num_workers=workers,
        memory_bytes=config.memory_bytes or _memory(device, workers),
        precision=precision,
        throughput=Throughput(tuple(samples)),
        disk_bytes_per_s=written_per_second(disk),
        failure_hours=config.failure_hours,
        **(_ACCELERATED | {"host_memory_bytes": _host_share(workers)} if device.type == "cuda" else {}),
    )


def written_per_second(folder: Path) -> float:
    """Bytes that reach the disk of `folder` a second, by one file of 32 MB."""
    path, block = folder / "speed.partial", os.urandom(2**20)
    try:
        started = time.perf_counter()
        with path.open("wb") as file:
            for _ in range(_WRITTEN // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return _WRITTEN / max(1e-6, time.perf_counter() - started)
    finally:
        path.unlink(missing_ok=True)


def measured_table(machine: Machine) -> dict[str, Any]:
    """The `[measured]` table of plan.toml."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads_per_worker": _threads_per_worker(machine.num_workers),
        "memory_bytes_per_worker": int(machine.memory_bytes),
        "disk_bytes_per_second": float(f"{machine.disk_bytes_per_s:.4g}"),
        "samples": [
            {
                "parameters": sample.shape.num_parameters,
                "tokens_per_second": round(1 / sample.seconds_per_token, 1),
                "flops_per_second": float(f"{sample.flops_per_second:.4g}"),
                "update_seconds": round(sample.update_seconds, 5),
            }
            for sample in machine.throughput.samples
        ],
    }


def _threads_per_worker(num_workers: int) -> int:
    return max(1, len(os.sched_getaffinity(0)) // num_workers)


def _memory(device: torch.device, num_workers: int) -> float:
    if device.type == "cpu":
        return _host_share(num_workers)
    import torch

    return float(torch.cuda.get_device_properties(device).total_memory * USABLE_MEMORY)


def _host_share(num_workers: int) -> float:
    from ray._common.utils import get_system_memory

    return float(get_system_memory() * _MEMORY_SHARE / num_workers)  # of the container, where there is one
