"""In which arithmetic a model is trained here.

Promise: a user's choice, refused in one line where the device cannot do it; auto is bfloat16 where matrix units for it make it pay, else
float32. Price: none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.distributed

__all__ = ["Arithmetic", "arithmetic_of_all", "arithmetic_on", "use_bfloat16"]

Arithmetic = Literal["bfloat16", "float16", "float32"]


def arithmetic_on(device: torch.device, precision: str) -> Arithmetic:
    """What `precision` (auto, bfloat16, float16, float32) means on `device`.

    Raises ValueError for float16 on a processor: its narrow range needs loss scaling, which is worth it only with matrix units for it.
    """
    if precision == "float16":
        if device.type == "cpu":
            raise ValueError("precision: float16 needs a GPU; on a processor give bfloat16, float32 or auto")
        return "float16"
    return "bfloat16" if use_bfloat16(precision, device) else "float32"


def arithmetic_of_all(device: torch.device, precision: str) -> Arithmetic:
    """The same for a process group, whose machines may differ and whose arithmetic may not: bfloat16 only where all would."""
    mine = arithmetic_on(device, precision)
    if precision != "auto" or not torch.distributed.is_initialized():
        return mine
    vote = torch.tensor(int(mine == "bfloat16"), device=device)
    torch.distributed.all_reduce(vote, op=torch.distributed.ReduceOp.MIN)
    return "bfloat16" if vote else "float32"


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether `precision` means bfloat16 here: auto, where the processor has matrix units for it.

    AVX-512 alone also multiplies bfloat16, but half as fast as float32 in training's wide products (83 against 150 GFLOP/s a core).
    """
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and bool({"amx_bf16", "bf16"} & set(cpuinfo.read_text().split()))
