"""What the machine says that it has used: joules of the GPU (NVML) or of the processors (RAPL).

Promise: a counter that only grows, or None where the machine does not tell (most virtual machines do not). Price: a system call a
reading; RAPL counts the whole processor, other programs included. Source: NVML's total energy counter; Linux's powercap interface.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["Joules", "energy_counter", "rapl_counter"]

Joules = Callable[[], float]
_POWERCAP = Path("/sys/class/powercap")


def energy_counter(device: torch.device) -> Joules | None:
    """Joules since the counter was made: of the GPU that `device` is, else of this machine's processors."""
    return _nvml_counter(device) if device.type == "cuda" else rapl_counter(_POWERCAP)


def rapl_counter(root: Path) -> Joules | None:
    """The processors' own counters, summed; they wrap around, which a reading a minute follows."""
    zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    try:
        last = {zone: int((zone / "energy_uj").read_text()) for zone in zones}
        ranges = {zone: int((zone / "max_energy_range_uj").read_text()) for zone in zones}
    except OSError:  # for root's eyes only, on many systems
        return None
    if not zones:
        return None
    total = 0.0

    def joules() -> float:
        nonlocal total
        for zone in zones:
            now = int((zone / "energy_uj").read_text())
            total += (now - last[zone]) % (ranges[zone] + 1) / 1e6
            last[zone] = now
        return total

    return joules


def _nvml_counter(device: torch.device) -> Joules | None:
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()

    def read() -> int | None:
        failed = nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
        return None if failed else millijoules.value

    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)) or (first := read()) is None:
        return None
    return lambda: ((read() or first) - first) / 1e3
