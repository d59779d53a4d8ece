"""Training while machines are drained, killed and replaced under it: what is learnt is what would have been learnt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNS = {
    "two workers, ZeRO 2": (
        [["drain", 20], ["come", 10], ["kill", 40], ["come", 10], ["swap", 20], ["kill", 30]],
        {"--workers": 2, "--machines": 2, "--stage": 2, "--steps": 1200},
    ),
    "one to three workers, ZeRO 3": (
        [["come", 10], ["come", 10], ["kill", 30], ["come", 10], ["drain", 20]],
        {"--workers": 3, "--machines": 1, "--stage": 3, "--steps": 500},
    ),
}


def happened(folder: Path, plan: list[list], options: dict[str, int], seed: int) -> dict:
    """A run with its events at about the steps of the plan."""
    rng = np.random.default_rng(seed)
    struck = [[kind, after + int(rng.integers(0, after))] for kind, after in plan]
    flags = [str(part) for option in options.items() for part in option]
    command = [sys.executable, "-m", "tests.chaos.training_run", str(folder), json.dumps(struck), "--every", "25", *flags]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    (folder / "found.json").write_text(done.stdout.splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", RUNS)
def test_machines_that_go_and_come_change_nothing_that_is_learnt(name: str, tmp_path: Path):
    plan, options = RUNS[name]
    found = happened(tmp_path / "run", plan, options, seed=int(np.random.default_rng().integers(1 << 31)))
    steps = options["--steps"]
    assert [event["kind"] for event in found["events"]] == [kind for kind, _ in plan], "the run was over before all events had come"
    assert found["same_data"], "a sequence was skipped, or seen twice, or out of its order"
    assert found["steps"] == list(range(1, steps + 1))
    assert found["losses"][-1] == pytest.approx(found["undisturbed"][-1], rel=1e-3)
    assert np.abs(np.array(found["losses"]) / np.array(found["undisturbed"]) - 1).max() < 1e-2
    attempts = found["attempts"]
    assert attempts[-1]["why"] == "finished"
    assert all(after["start"] == before["end"] for before, after in pairwise(attempts))
    noticed = [attempt for attempt in attempts if attempt["why"] in ("left", "grew")]
    assert len(noticed) >= sum(event["kind"] != "kill" for event in found["events"]) - 1
    assert all(attempt["done"] == attempt["end"] - attempt["start"] for attempt in noticed), "a finished step was not committed"
    assert len({attempt["num_workers"] for attempt in attempts}) == options["--workers"]
    groups = [f"run-{attempt['name']}-{attempt['num_workers']}" for attempt in attempts]
    for event in found["events"]:
        if event["kind"] in ("drain", "swap", "kill"):
            later = attempts[groups.index(event["group"]) + 1 :]
            assert not any(event["node"] in attempt["nodes"] for attempt in later), "a worker was put on a machine that was going"
    for attempt in attempts:  # without notice, no more than the steps since the newest checkpoint, and one that was being written
        assert attempt["done"] - (attempt["end"] - attempt["start"]) <= 2 * 25
