"""One worker of benchmarks/checkpoints.py: saves and reads checkpoints of a ZeRO 2 run, ours and DeepSpeed's, and says what they took.

Worker 0 prints one line of JSON. `save` trains three steps and writes; `read` reads what was written, by however many workers there are.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.workers.training import sequences_of
from train.architectures import make_config, make_model
from train.checkpoint import Checkpoints, newest, restore
from train.loop import run
from train.plan.shapes import ModelShape
from train.recipe import Recipe
from train.sharded import ShardedStepper
from train.state import State

__all__ = ["main"]

ASKED = 100
_TAG = "zero"


def timed(stepper: ShardedStepper, what: Callable[[], Any]) -> float:
    """Seconds until all workers have done it."""
    stepper.barrier()
    began = time.perf_counter()
    what()
    stepper.barrier()
    return time.perf_counter() - began


def save(stepper: ShardedStepper, recipe: Recipe, shape: ModelShape, folder: Path, rounds: int) -> dict[str, Any]:
    """Both kinds of checkpoint, `rounds` times in turn."""
    state = run(stepper, sequences_of(recipe, shape.vocab_size), recipe, state=State())
    found: dict[str, list[float]] = {"blocked": [], "committed": [], "deepspeed": []}
    for number in range(rounds):
        ours = Checkpoints(str(folder / "ours"), stepper, f"{number}")
        found["blocked"].append(timed(stepper, lambda: ours.save(state)))  # noqa: B023
        found["committed"].append(found["blocked"][-1] + timed(stepper, ours.settle))
        theirs = str(folder / "deepspeed")
        found["deepspeed"].append(timed(stepper, lambda: stepper._engine.save_checkpoint(theirs, tag=_TAG)))  # noqa: B023
    asked = [timed(stepper, _ask) for _ in range(rounds)]
    return {name: statistics.median(values) for name, values in found.items()} | {"asked": statistics.median(asked) / ASKED}


def _ask() -> None:
    """What the workers compare after each step, as train/elastic/worker.py does, a hundred times."""
    for _ in range(ASKED):
        torch.distributed.all_reduce(torch.zeros(4, dtype=torch.float64), op=torch.distributed.ReduceOp.MAX)


def read(stepper: ShardedStepper, recipe: Recipe, shape: ModelShape, folder: Path, universal: bool) -> dict[str, Any]:
    """Our checkpoint or DeepSpeed's universal one, and the loss of the step after it."""
    saved = newest(str(folder / "ours"))
    assert saved is not None
    if universal:
        theirs = str(folder / "universal")
        took = timed(stepper, lambda: stepper._engine.load_checkpoint(theirs, tag=_TAG, load_module_strict=False))
    else:
        took = timed(stepper, lambda: restore(saved, stepper))
    after = run(stepper, sequences_of(recipe, shape.vocab_size), recipe, state=State(saved.state.step, saved.state.records))
    return {"read": took, "loss": after.records[-1].loss}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("save", "ours", "universal"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", type=json.loads, required=True)
    parser.add_argument("--recipe", type=json.loads, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    shape, recipe = ModelShape.from_table(options.shape), Recipe(**options.recipe)
    stepper = ShardedStepper(make_model(make_config(shape), seed=0), recipe)
    if options.kind == "save":
        found = save(stepper, recipe, shape, options.folder, options.rounds)
    else:
        if options.kind == "universal":
            stepper._engine._config.load_universal_checkpoint = True
        found = read(stepper, recipe, shape, options.folder, options.kind == "universal")
    if os.environ["RANK"] == "0":
        print(json.dumps(found))


if __name__ == "__main__":
    main()
