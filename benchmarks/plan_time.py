"""Predicted against real time and loss: a plan is made for this machine and carried out, both by the commands that a user gives.

Promise: the clock runs from the start of `sterna pretrain` to its end, imports, Ray, checkpoints and the written model included, as the
prediction does; nothing in the plan is touched in between. Price: the plan's budget and half a minute for the probes; a machine that does
nothing else.

    python -m benchmarks.plan_time runs/tokens --budget minutes=4 --json runs/plan-time.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

__all__ = ["main", "measured", "table"]


def verb(*words: str) -> float:
    """Seconds that a command of sterna's takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "sterna", *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def measured(tokens: str, budget: str, folder: Path) -> dict[str, Any]:
    """What was planned, and what came of it."""
    planning = verb("plan", "run", "--tokens", tokens, "--budget", budget, "--output", str(folder / "plan"))
    plan = tomllib.loads((folder / "plan" / "plan.toml").read_text())
    took = verb("pretrain", "--plan", str(folder / "plan"), "--output", str(folder / "model"))
    reached = json.loads((folder / "model" / "manifest.json").read_text())["metrics"]
    seconds = {name: 3600 * value for name, value in plan["predicted"]["hours"].items()}
    return {
        "budget": budget, "planning_s": planning, "parameters": plan["compute"]["parameters"], "recipe": plan["train"],
        "predicted_s": seconds, "measured_s": took, "error": seconds["value"] / took - 1,
        "predicted_step_s": plan["compute"]["step_seconds"], "measured_step_s": reached["train_seconds"] / reached["steps"],
        "predicted_loss": plan["predicted"]["loss"], "reached_loss": reached["final_loss"],
        "loss_error": plan["predicted"]["loss"]["value"] / reached["final_loss"] - 1,
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """For people."""
    time_s, loss, recipe = found["predicted_s"], found["predicted_loss"], found["recipe"]
    rows = [
        ("seconds, from the command to its end", time_s["value"], time_s["low"], time_s["high"], found["measured_s"], found["error"]),
        ("loss", loss["value"], loss["low"], loss["high"], found["reached_loss"], found["loss_error"]),
    ]
    head = (
        f"{found['budget']}: {found['parameters'] / 1e6:.2f} M parameters, {recipe['steps']:,} steps of {recipe['global_batch']} sequences "
        f"on {recipe['num_workers']} workers, ZeRO {recipe['zero_stage']}; a step was to take {found['predicted_step_s']:.3f} s and took "
        f"{found['measured_step_s']:.3f} s; planning took {found['planning_s']:.0f} s"
    )
    lines = [
        f"{name:<38}{value:>9.2f} ({low:.2f} to {high:.2f}){real:>10.2f}{error:>+8.1%}" for name, value, low, high, real, error in rows
    ]
    return "\n".join([head, f"{'':<38}{'predicted':>9}{'measured':>28}{'error':>8}", *lines])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", help="folder that `sterna tokenize` made")
    parser.add_argument("--budget", default="minutes=4")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sterna-plan-time-") as folder:
        found = measured(options.tokens, options.budget, Path(folder))
    print(table(found))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
