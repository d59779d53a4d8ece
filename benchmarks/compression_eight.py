"""The share of the linear layers' parameters that go to 8 bits within the noise floor (arXiv 2311.01544 finds 80 %).

Promise: matrices become int8 in the order that harms least by the search's prompts; every share is judged on held-out prompts beside the
noise of the same prompts: the tokens and the KL that bfloat16 arithmetic alone changes. Price: ten passes per rounding.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from benchmarks.compression_bench import Bench
from serve.engine.config import EngineConfig
from train.compress.baselines import uniform
from train.compress.calibrate import matrices
from train.compress.noise import measure_noise
from train.compress.search import at_bytes

__all__ = ["ROUNDINGS", "SHARES", "by_share", "noise_of"]

ROUNDINGS = ("int8", "int8-gptq", "int8-gptq-g64")
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def noise_of(bench: Bench) -> dict[str, Any]:
    """The floors on the held-out prompts."""
    noise, _ = measure_noise(bench.model, EngineConfig(), bench.held_out.reference)
    return asdict(noise) | {"floor": noise.floor}


def by_share(bench: Bench, rounding: str, share: float) -> dict[str, Any]:
    """`share` of what this rounding can save at all is saved, where that harms least; judged on held-out prompts."""
    linear = {matrix.name: matrix.rows * matrix.columns for matrix in matrices(bench.dense) if matrix.role == "linear"}
    candidates = [each for each in bench.offer.candidates if each.matrix in linear and each.option in ("keep", rounding)]
    most, least = (bench.bytes_of(uniform(candidates, each)) for each in ("keep", rounding))
    elsewhere = bench.bytes_of({}) - sum(each.bytes for each in candidates if each.option == "keep")
    plan = at_bytes(candidates, round(most - share * (most - least)) - elsewhere)
    assert plan is not None
    chosen = [name for name, each in plan.items() if each != "keep"]
    return bench.judged(plan, bench.held_out) | {
        "parameters": sum(linear[name] for name in chosen) / sum(linear.values()),
        "kept": sorted(set(plan) - set(chosen)),
    }
