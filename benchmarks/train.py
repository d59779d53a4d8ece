"""Our training loop beside a bare torch loop and transformers' Trainer; ZeRO against one process, in losses, speed and memory.

Promise: every contestant trains the same model on the same batches with the same optimizer, precision and threads, in a process of its
own; they take turns, a step each, so that a ratio compares steps that met the same machine, however busy it is. `losses` compares 50
float32 steps of every ZeRO stage on two workers with one process of plain torch; `speed` one worker beside its peers; `options` what guard,
z-loss, gradient checkpointing, bfloat16 and Muon cost; `workers` what two workers cost or gain; `checkpoints` how much of a minute one
takes, by stretches of steps that begin with one and stretches that do not. Price: about a quarter of an hour on two free cores.


    python -m benchmarks.train --json runs/train.json
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.intervals import Interval, interval, ratio_of_rounds
from cluster.settings import as_dict
from train.plan.shapes import ModelShape, shape_of_width
from train.recipe import Recipe

__all__ = ["Contestant", "checkpoints_table", "losses_table", "speed_table"]

SHAPE = shape_of_width(320, vocab_size=8192, max_length=512)
SMALL = shape_of_width(64, vocab_size=512, max_length=128)
WARM = 2  # steps before the clock counts: allocations, caches, the optimizer's state
RECIPE = Recipe(
    steps=14, global_batch=4, micro_batch=2, sequence_length=512, learning_rate=1e-3, schedule="constant", num_workers=1, zero_stage=0,
    precision="float32",
)  # fmt: skip
FIFTY = replace(RECIPE, steps=50, global_batch=8, sequence_length=64)
STRETCH, PAIRS = 10, 6  # steps, much longer than a checkpoint is being written; with one and without
KEPT = replace(
    RECIPE, steps=2 * STRETCH * (PAIRS + 1), checkpoint_every=2 * STRETCH, guard=0.0
)  # the guard's own copies would fall unevenly
PEERS = ("bare", "trainer", "sterna")
PARTS = ["losses", "speed", "checkpoints", "options", "workers"]
OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no guard": {"guard": 0.0},
    "z-loss": {"z_loss": 1e-4},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "bfloat16": {"precision": "bfloat16"},
    "muon": {"optimizer": "muon"},
}
WORKERS: dict[str, tuple[int, dict[str, Any]]] = {
    "1 worker, 1 thread": (1, {}),
    "1 worker, 2 threads": (2, {}),
    **{f"2 workers, ZeRO {stage}": (1, {"num_workers": 2, "zero_stage": stage}) for stage in range(4)},
}


class Contestant:
    """A run in processes of its own, as many as its recipe has workers, that makes a step when it is given a turn."""

    def __init__(self, name: str, shape: ModelShape, recipe: Recipe, threads: int) -> None:
        command = [
            sys.executable, "-W", "ignore", "-m", "benchmarks.workers.training", name, "--threads", str(threads),
            "--shape", json.dumps(shape.table()), "--recipe", json.dumps(as_dict(recipe)),
        ]  # fmt: skip
        shared = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
        group = {"WORLD_SIZE": str(recipe.num_workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}

        def member(rank: int) -> dict[str, str]:  # a lone process is told of no group: the Trainer would wrap its model for one
            return {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} if recipe.num_workers > 1 else {}

        self._others = [
            subprocess.Popen(command, env={**shared, **member(rank)}, stdout=subprocess.DEVNULL) for rank in range(1, recipe.num_workers)
        ]
        self._first = subprocess.Popen(
            command, env={**shared, **member(0)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.seconds: list[float] = []
        self._read()

    def step(self) -> None:
        """One step, timed."""
        began = time.perf_counter()
        self._go()
        self._read()
        self.seconds.append(time.perf_counter() - began)

    def end(self) -> dict[str, Any]:
        """Worker 0's figures, and the seconds of all steps but the first."""
        self._go()
        found = json.loads(self._read('{"losses"'))
        assert [process.wait() for process in (self._first, *self._others)] == [0] * (1 + len(self._others))
        return {**found, "seconds": self.seconds[WARM:]}

    def _go(self) -> None:
        assert self._first.stdin is not None
        self._first.stdin.write("\n")

    def _read(self, start: str = "\n") -> str:
        """The next line that starts so; what libraries print is passed over."""
        assert self._first.stdout is not None
        while not (line := self._first.stdout.readline()).startswith(start):
            assert line, f"the contestant ended early with exit status {self._first.wait()}"
        return line


def losses() -> dict[str, Any]:
    """50 float32 steps of one process of plain torch, and of every ZeRO stage on two workers."""
    runs = {"one process": FIFTY, **{f"ZeRO {stage}": replace(FIFTY, num_workers=2, zero_stage=stage) for stage in range(4)}}
    found = {}
    for name, recipe in runs.items():
        contestant = Contestant("sterna", SMALL, recipe, 1)
        for _ in range(recipe.steps):
            contestant.step()
        found[name] = contestant.end()["losses"]
    return {"losses": found}


def losses_table(figures: dict[str, Any]) -> str:
    """The largest relative difference from the reference, stage by stage."""
    runs = dict(figures["losses"])
    reference = runs.pop("one process")
    lines = [f"{len(reference)} steps in float32, from loss {reference[0]:.3f} to {reference[-1]:.3f} in one process of plain torch"]
    for name, found in runs.items():
        worst = max(abs(a - b) / b for a, b in zip(found, reference, strict=True))
        lines.append(f"{name} on 2 workers: largest relative difference {worst:.1e} ({'met' if worst <= 1e-4 else 'MISSED'}: 1e-4)")
    return "\n".join(lines)


def in_turns(part: str) -> dict[str, Any]:
    """All contestants of a part, a step each in turn."""
    threads = len(os.sched_getaffinity(0))
    if part == "speed":
        runs = {peer: (peer, RECIPE, threads) for peer in PEERS}
    elif part == "options":
        runs = {label: ("sterna", replace(RECIPE, **changes), threads) for label, changes in OPTIONS.items()}
    else:
        runs = {label: ("sterna", replace(RECIPE, **changes), count) for label, (count, changes) in WORKERS.items()}
    contestants = {label: Contestant(who, SHAPE, recipe, n) for label, (who, recipe, n) in runs.items()}
    for _ in range(RECIPE.steps):
        for contestant in contestants.values():
            contestant.step()
    return {label: contestant.end() for label, contestant in contestants.items()}


def checkpoints() -> dict[str, Any]:
    """One run, a checkpoint every other stretch: its steps' seconds, stretch by stretch."""
    contestant = Contestant("checkpointed", SHAPE, KEPT, len(os.sched_getaffinity(0)))
    for _ in range(KEPT.steps):
        contestant.step()
    contestant.end()
    seconds = [sum(contestant.seconds[start : start + STRETCH]) for start in range(0, KEPT.steps, STRETCH)]
    return {"with": seconds[2::2], "without": seconds[3::2]}  # none of the first two begins with a checkpoint: they warm up


def checkpoints_table(figures: dict[str, Any]) -> str:
    """What a checkpoint costs, and its share of a minute."""
    extra = [one - none for one, none in zip(figures["with"], figures["without"], strict=True)]
    cost = interval(len(extra), lambda i: statistics.median(extra[n] for n in i))
    share = Interval(*(100 * seconds / 60 for seconds in (cost.value, cost.low, cost.high)))
    without, with_one = (statistics.median(figures[kind]) for kind in ("without", "with"))
    return (
        f"{STRETCH} steps take {without:.1f} s, with a checkpoint {with_one:.1f} s; within a pair it costs {cost} s\n"
        f"at one a minute: {share} % of wall time ({'met' if share.value <= 5 else 'MISSED'}: 5 %)"
    )


def speed_table(figures: dict[str, Any], reference: str) -> str:
    """Tokens per second (median over steps), against `reference` step by step, and peak memory of worker 0."""
    tokens = RECIPE.global_batch * RECIPE.sequence_length
    speeds = {label: [tokens / s for s in run["seconds"]] for label, run in figures.items()}
    lines = [f"{'':<24}{'tokens/s':>10}   {'of ' + reference:<24}{'peak MB':>9}"]
    for label, each in speeds.items():
        ratio = "" if label == reference else str(ratio_of_rounds(each, speeds[reference]))
        lines.append(f"{label:<24}{statistics.median(each):>10,.0f}   {ratio:<24}{figures[label]['peak_bytes'] / 1e6:>9,.0f}")
    if "trainer" in speeds:
        lines += [_target(speeds, peer, wanted) for peer, wanted in (("bare", 0.95), ("trainer", 1.0))]
    return "\n".join(lines)


def _target(speeds: dict[str, list[float]], peer: str, wanted: float) -> str:
    ratio = ratio_of_rounds(speeds["sterna"], speeds[peer])
    return f"sterna ÷ {peer}: {ratio} ({'met' if ratio.value >= wanted else 'MISSED'}: {wanted})"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    references = {"speed": "bare", "options": "as it is", "workers": "1 worker, 1 thread"}
    kept: dict[str, Any] = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    alone = {"losses": (losses, losses_table), "checkpoints": (checkpoints, checkpoints_table)}
    for part in options.parts:
        kept[part] = alone[part][0]() if part in alone else in_turns(part)
        table = alone[part][1](kept[part]) if part in alone else speed_table(kept[part], references[part])
        print(f"{part}\n{table}\n", flush=True)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
