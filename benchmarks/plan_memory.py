"""Predicted against measured memory: ZeRO 0 to 3, with and without checkpointed activations, two shapes with 2 GiB of state and more.

Promise: each configuration runs in fresh processes through the steppers, the loop, the guard and the checkpoints of `sterna pretrain`; a
worker's figure is the most that was resident at any time, less what interpreter and libraries held before its model was made. State is
weights, gradients and Adam's moments in float32: 16 bytes a parameter, over all workers together where they are sharded. Price: twenty
minutes on two cores, up to 12 GiB of memory, 2 GB of disk at a time. The model of memory (train/plan/memory.py) has no
constant that was fitted to these: it was looked into with `--shapes small`, which is not among them.

    python -m benchmarks.plan_memory --json runs/plan-memory.json
    python -m benchmarks.plan_memory --shapes small
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from cluster.settings import as_dict
from train.plan.memory import Footprint, footprint
from train.plan.shapes import ModelShape
from train.recipe import Recipe

__all__ = ["SHAPES", "main", "measured", "predicted", "recipe_of", "table"]

WORKERS, MICRO_BATCH, LENGTH = 2, 2, 256
GIB = 2**30


def _shape(width: int, layers: int, heads: int, groups: int, inner: int, vocab: int, tied: bool) -> ModelShape:
    return ModelShape(
        architecture="dense", vocab_size=vocab, hidden_size=width, num_layers=layers, num_heads=heads, num_kv_heads=groups,
        head_dim=width // heads, intermediate_size=inner, tie_embeddings=tied, max_length=LENGTH,
    )  # fmt: skip


SHAPES = {
    "small": _shape(768, 8, 12, 4, 2048, 16_384, True),
    "wide": _shape(1024, 10, 16, 4, 2816, 16_384, False),
    "deep": _shape(640, 24, 10, 5, 1920, 32_768, True),
}
"""small is to look into; the others are what is shown."""


def recipe_of(stage: int, checkpointing: bool) -> Recipe:
    """Four steps on two workers, a checkpoint after the third."""
    return Recipe(
        steps=4, global_batch=WORKERS * MICRO_BATCH, micro_batch=MICRO_BATCH, sequence_length=LENGTH, learning_rate=1e-4,
        zero_stage=stage, gradient_checkpointing=checkpointing, precision="float32", num_workers=WORKERS, checkpoint_every=3,
    )  # fmt: skip


def predicted(shape: ModelShape, recipe: Recipe) -> Footprint:
    """What the planner says, without the libraries."""
    return footprint(
        shape, zero_stage=recipe.zero_stage, num_workers=recipe.num_workers, micro_batch=recipe.micro_batch,
        sequence_length=recipe.sequence_length, precision="float32", gradient_checkpointing=recipe.gradient_checkpointing,
        runtime_bytes=0.0,
    )  # fmt: skip


def measured(shape: ModelShape, recipe: Recipe) -> list[dict[str, int]]:
    """Each worker's bytes, by phase."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(recipe.num_workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with tempfile.TemporaryDirectory(prefix="sterna-memory-") as folder:
        command = [sys.executable, "-m", "benchmarks.workers.plan_memory", folder]
        command += ["--shape", json.dumps(shape.table()), "--recipe", json.dumps(as_dict(recipe))]
        workers = [
            subprocess.Popen(
                command,
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(recipe.num_workers)
        ]
        said = [worker.communicate() for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), said[0][1][-3000:] + said[-1][1][-3000:]
    return [dict(json.loads(out.splitlines()[-1])) for out, _ in said]


def row(name: str, stage: int, checkpointing: bool) -> dict[str, Any]:
    """One configuration."""
    shape, recipe = SHAPES[name], recipe_of(stage, checkpointing)
    terms, workers = predicted(shape, recipe), measured(shape, recipe)
    most = max(worker["saved"] for worker in workers)
    return {
        "shape": name, "parameters": shape.num_parameters, "zero_stage": stage, "gradient_checkpointing": checkpointing,
        "predicted": terms.total, "measured": most, "error": terms.total / most - 1, "terms": terms.terms(), "workers": workers,
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """For people: GiB of the fullest worker."""
    lines = ["shape   parameters  state  ZeRO  checkpointed  predicted  measured   error"]
    for each in rows:
        state = 16 * each["parameters"] / GIB
        lines.append(
            f"{each['shape']:<6} {each['parameters'] / 1e6:>9.1f} M  {state:>5.2f}  {each['zero_stage']:>4}  "
            f"{'yes' if each['gradient_checkpointing'] else 'no':>12}  {each['predicted'] / GIB:>9.2f}  {each['measured'] / GIB:>8.2f}  "
            f"{each['error']:>+6.1%}"
        )
    worst = max(abs(each["error"]) for each in rows)
    return "\n".join([*lines, f"{len(rows)} configurations, at most {worst:.1%} off; GiB"])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=["wide", "deep"])
    parser.add_argument("--stages", nargs="+", type=int, choices=range(4), default=[0, 1, 2, 3])
    parser.add_argument("--terms", action="store_true", help="print the predicted terms and the measured phases of each as they come")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for name, stage, checkpointing in product(options.shapes, options.stages, (False, True)):
        rows.append(row(name, stage, checkpointing))
        print(table(rows[-1:]).splitlines()[1], flush=True)
        if options.terms:
            for of in (rows[-1]["terms"], *rows[-1]["workers"]):
                print("   ", ", ".join(f"{key} {value / 2**20:,.0f}" for key, value in of.items()), flush=True)
    print(table(rows))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
