"""How a run is going: speed, utilisation, memory, energy and the time that is left.

Promise: every figure is a formula over the loop's records and a counter of the machine. Model FLOP/s utilisation (MFU) is the model's
FLOPs over what the device could do: a GPU's data sheet (dense), or, on a processor, a matrix product measured there and then.
Price: that product, a tenth of a second at the start. Memory and energy are worker 0's. Source: PaLM (arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

import resource
import time
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from train.loss import Objective
from train.progress.energy import Joules, energy_counter
from train.recipe import Recipe
from train.state import Record

__all__ = ["Meter", "Reading", "model_flops_per_token", "peak_flops"]

_RECENT = 32  # steps that speed and the time left are judged by
_PEAK_TFLOPS = {  # dense bfloat16, from the makers' data sheets; the first name that fits
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312, "L40S": 362, "L40": 181, "L4": 121,
    "A10G": 70, "A10": 125, "A30": 165, "RTX 4090": 165,
}  # fmt: skip
_SIDE = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A step and how the run stood after it: a line of metrics.jsonl, and what Prometheus is told."""

    step: int
    window: int
    """Which global batch of the data's order it took, from 0."""
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int
    """Target tokens of the step."""
    seconds: float
    """Of the step."""
    tokens_per_second: float
    """Target tokens, over the last steps."""
    mfu: float | None
    """Model FLOP/s over what all workers' devices could do, over the last steps; None where the model's FLOPs are unknown."""
    memory_bytes: int
    """Peak of worker 0: of its GPU's memory, else resident."""
    energy_joules: float | None
    """Since the start, of worker 0's GPU or machine; None where it does not tell."""
    seconds_left: float


class Meter:
    """Reads a run from worker 0."""

    def __init__(self, recipe: Recipe, device: torch.device, *, flops_per_token: float | None, peak: float, joules: Joules | None) -> None:
        """`flops_per_token` of one token of training; `peak` FLOP/s of one worker."""
        self._recipe, self._device, self._joules = recipe, device, joules
        self._flops_per_step = None if flops_per_token is None else flops_per_token * recipe.global_batch * recipe.sequence_length
        self._peak = peak * recipe.num_workers
        self._recent: deque[Record] = deque(maxlen=_RECENT)

    @classmethod
    def on(cls, device: torch.device, arithmetic: str, recipe: Recipe, flops_per_token: float | None) -> Meter:
        """A meter with what this machine has to read."""
        return cls(recipe, device, flops_per_token=flops_per_token, peak=peak_flops(device, arithmetic), joules=energy_counter(device))

    def read(self, record: Record) -> Reading:
        """How the run stands after the step of `record`."""
        self._recent.append(record)
        seconds = max(1e-9, sum(r.seconds for r in self._recent))
        mfu = None if self._flops_per_step is None else self._flops_per_step * len(self._recent) / seconds / self._peak
        return Reading(
            step=record.step,
            window=record.window,
            loss=record.loss,
            gradient_norm=record.gradient_norm,
            learning_rate=record.learning_rate,
            tokens=record.tokens,
            seconds=record.seconds,
            tokens_per_second=sum(r.tokens for r in self._recent) / seconds,
            mfu=mfu,
            memory_bytes=_peak_memory(self._device),
            energy_joules=self._joules() if self._joules else None,
            seconds_left=median(r.seconds for r in self._recent) * (self._recipe.steps - record.step),
        )


def peak_flops(device: torch.device, arithmetic: str) -> float:
    """FLOP/s that a device can do at best: known for some GPUs in bfloat16 and float16, measured for all else."""
    if device.type == "cuda" and arithmetic != "float32":
        name = torch.cuda.get_device_name(device)
        for known, tera in _PEAK_TFLOPS.items():
            if known in name:
                return tera * 1e12
    return _measured_flops(device, getattr(torch, arithmetic))


def model_flops_per_token(model: nn.Module, sequence_length: int) -> float:
    """FLOPs of one token of training for a model without a plan: 6 a weight of a linear layer, 12 a layer, unit and half the context.

    A frozen weight takes 4 (no gradient of its own); of experts only the share that a token visits is counted.
    """
    model = model.model if isinstance(model, Objective) else model
    config: Any = model.config
    total = 0.0
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Embedding) or not isinstance(weight, torch.Tensor) or weight.ndim != 2:
            continue
        total += _per_weight(weight) * weight.numel() * (_visited(config) if ".experts." in name else 1.0)
    for name, weight in model.named_parameters():
        if weight.ndim == 3 and "experts" in name:
            total += _per_weight(weight) * weight.numel() * _visited(config)
    heads = getattr(config, "num_attention_heads", None) or 0
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1))
    return total + 12.0 * config.num_hidden_layers * width * sequence_length / 2


def _per_weight(weight: torch.Tensor) -> float:
    return 6.0 if weight.requires_grad else 4.0


def _visited(config: Any) -> float:
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 1
    return (getattr(config, "num_experts_per_tok", None) or experts) / experts


def _measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product, the best of several."""
    a, b = (torch.randn(_SIDE, _SIDE, device=device).to(dtype) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + 0.1
    while time.perf_counter() < until or best == float("inf"):
        began = time.perf_counter()
        float((a @ b)[0, 0])  # the value waits for the device
        best = min(best, time.perf_counter() - began)
    return 2 * _SIDE**3 / best


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
