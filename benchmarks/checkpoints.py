"""A checkpoint of a run on two ZeRO 2 workers, ours beside DeepSpeed's: how long the loop stands still, what going on with one takes.

Promise: the same engine, the same state, the same disk, in turn; the loss of the step after each restart is compared. DeepSpeed's own
checkpoint is refused by another number of workers, so its universal converter runs between. Price: a minute on two free cores.

    python -m benchmarks.checkpoints --json runs/checkpoints.json
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.settings import as_dict
from train.plan.shapes import shape_of_width
from train.recipe import Recipe

__all__ = ["main", "table"]

SHAPE = shape_of_width(512, vocab_size=8192, max_length=128)
RECIPE = Recipe(
    steps=3, global_batch=2, micro_batch=1, sequence_length=64, learning_rate=1e-3, schedule="constant", guard=0.0, num_workers=2,
    zero_stage=2, precision="float32",
)  # fmt: skip


def once(kind: str, folder: Path, recipe: Recipe) -> dict[str, Any]:
    """One kind of run, in as many processes as the recipe has workers; worker 0's figures."""
    command = [
        sys.executable, "-m", "benchmarks.workers.checkpoints", kind, str(folder),
        "--shape", json.dumps(SHAPE.table()), "--recipe", json.dumps(as_dict(recipe)),
    ]  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(recipe.num_workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    workers = [
        subprocess.Popen(
            command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(recipe.num_workers)
    ]
    said = [worker.communicate() for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), said[0][1][-3000:]
    return dict(json.loads(said[0][0].splitlines()[-1]))


def convert(folder: Path) -> float:
    """Seconds that DeepSpeed's converter takes, its own imports included."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state", "--num_extract_workers", "2"]
    command += ["--num_merge_workers", "2", "--input_folder", str(folder / "deepspeed" / "zero")]
    command += ["--output_folder", str(folder / "universal" / "zero")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def measured() -> dict[str, Any]:
    """All the figures."""
    with tempfile.TemporaryDirectory(prefix="sterna-checkpoints-") as scratch:
        folder = Path(scratch)
        found: dict[str, Any] = {"save": once("save", folder, RECIPE)}
        found["convert_s"] = convert(folder)
        for workers in (2, 1):
            recipe = replace(RECIPE, steps=4, num_workers=workers)
            found[f"ours_{workers}"] = once("ours", folder, recipe)
            found[f"universal_{workers}"] = once("universal", folder, recipe)
        newest = sorted((folder / "ours").iterdir())[-1]
        found["bytes"] = {"ours": _size(newest), "deepspeed": _size(folder / "deepspeed"), "universal": _size(folder / "universal")}
    return found


def table(found: dict[str, Any]) -> str:
    """For people: seconds, and megabytes on disk."""
    save, size = found["save"], {name: f"{value / 1e6:,.0f}" for name, value in found["bytes"].items()}
    rows = [
        ("", "ours", "DeepSpeed's"),
        ("the loop stands still", f"{save['blocked']:.2f} s", f"{save['deepspeed']:.2f} s"),
        ("until it is committed", f"{save['committed']:.2f} s", f"{save['deepspeed']:.2f} s"),
        ("converted for another number of workers", "not needed", f"{found['convert_s']:.1f} s"),
        ("read by 2 workers", f"{found['ours_2']['read']:.2f} s", f"{found['universal_2']['read']:.2f} s"),
        ("read by 1 worker", f"{found['ours_1']['read']:.2f} s", f"{found['universal_1']['read']:.2f} s"),
        ("MB", size["ours"], f"{size['deepspeed']} and {size['universal']}"),
        ("loss of the next step, 2 workers", f"{found['ours_2']['loss']:.6f}", f"{found['universal_2']['loss']:.6f}"),
        ("loss of the next step, 1 worker", f"{found['ours_1']['loss']:.6f}", f"{found['universal_1']['loss']:.6f}"),
    ]
    lines = [f"{name:<42}{ours:>14}{theirs:>18}" for name, ours, theirs in rows]
    return "\n".join([*lines, f"whether a machine is going is asked of each other in {save['asked'] * 1000:.2f} ms a step"])


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measured()
    print(table(found))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
