"""One worker of benchmarks/plan_memory.py: some steps of a recipe with its guard and a checkpoint, and the memory that they took.

It prints one line of JSON: resident bytes above those of the interpreter, the libraries and a tiny model's step, at their highest until
each phase was over.
"""

from __future__ import annotations

import argparse
import gc
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.architectures import make_config, make_model
from train.checkpoint import Checkpoints
from train.corpus import Sequences
from train.loop import run
from train.plain import PlainStepper
from train.plan.shapes import ModelShape, shape_of_width
from train.recipe import Recipe
from train.sharded import quiet_deepspeed
from train.state import State
from train.steppers import make_stepper

__all__ = ["main"]

_PROCESS = Path("/proc/self")


class Lingering(Checkpoints):
    """Checkpoints to a storage so slow that the copy is held for the whole step after it, as the planner assumes."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.stepped = threading.Event()

    def _write(self, *args: Any) -> None:
        self.stepped.wait()
        super()._write(*args)


def resident(name: str) -> int:
    """Bytes: VmRSS is what is resident now, VmHWM the most that was since the last `forget_peak`."""
    lines = dict(line.split(":", 1) for line in (_PROCESS / "status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def forget_peak() -> None:
    """From here on VmHWM counts anew."""
    (_PROCESS / "clear_refs").write_text("5")


def packed(recipe: Recipe, vocab_size: int) -> Sequences:
    """Random tokens, two documents to a sequence."""
    shape = (4 * recipe.global_batch, recipe.sequence_length)
    segments = np.ones(shape, dtype=np.uint16)
    segments[:, recipe.sequence_length // 2 :] = 2
    return Sequences([np.random.default_rng(0).integers(4, vocab_size, shape, dtype=np.uint16)], [segments])


def warmed(recipe: Recipe) -> int:
    """What the libraries hold once all that they load and set up lazily is there."""
    quiet_deepspeed(torch.device("cpu"))
    tiny = shape_of_width(32, vocab_size=64, max_length=recipe.sequence_length)
    small = replace(recipe, zero_stage=0, num_workers=1, global_batch=2, micro_batch=1, steps=2, gradient_checkpointing=False)
    run(PlainStepper(make_model(make_config(tiny)), small), packed(small, tiny.vocab_size), small, state=State())
    gc.collect()
    return resident("VmRSS")


def peaks(shape: ModelShape, recipe: Recipe, folder: Path) -> dict[str, int]:
    """Phase -> most resident bytes until its end. The run is cut once, so that the guard's copy holds all that there is to hold."""
    found = {}
    stepper = make_stepper(make_model(make_config(shape), seed=0), recipe)
    found["built"] = resident("VmHWM")
    source = packed(recipe, shape.vocab_size)
    state = run(stepper, source, recipe, state=State(), stop=lambda now: now.step == 2)
    found["stepped"] = resident("VmHWM")
    checkpoints = Lingering(str(folder), stepper, "once")
    run(stepper, source, recipe, state=state, checkpoint=checkpoints.save, report=lambda r: r.step == 4 and checkpoints.stepped.set())
    checkpoints.settle()
    stepper.barrier()
    return found | {"saved": resident("VmHWM")}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", type=json.loads, required=True)
    parser.add_argument("--recipe", type=json.loads, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe(**options.recipe)
    torch.distributed.init_process_group("gloo")
    before = warmed(recipe)
    forget_peak()
    found = peaks(ModelShape.from_table(options.shape), recipe, options.folder)
    print(json.dumps({"before": before} | {phase: peak - before for phase, peak in found.items()}))


if __name__ == "__main__":
    main()
