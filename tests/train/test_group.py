"""Two workers of a process group, by whichever stepper the recipe gets, against one process of plain torch: losses over 50 steps, Muon,
offload, gradient checkpointing, going back."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from train.recipe import Recipe

_SHARED = {"global_batch": 8, "micro_batch": 2, "sequence_length": 32, "learning_rate": 1e-3, "precision": "float32"}
_RUNS = {
    **{f"stage {stage}": {"steps": 50, "zero_stage": stage, "warmup_steps": 5} for stage in range(4)},
    "muon": {"steps": 8, "zero_stage": 0, "optimizer": "muon"},
    "optimizer offloaded": {"steps": 8, "zero_stage": 2, "offload": "optimizer"},
    "parameters offloaded, recomputed": {"steps": 8, "zero_stage": 3, "offload": "parameters", "gradient_checkpointing": True},
    "recomputed": {"steps": 8, "zero_stage": 3, "gradient_checkpointing": True},
}
_WORKER = """
import json, sys
from pathlib import Path
import numpy as np
import torch, torch.distributed
from transformers import AutoModelForCausalLM
from train.corpus import Sequences
from train.loop import run
from train.recipe import Recipe
from train.state import State
from train.steppers import make_stepper

model_dir, tokens_dir, out = map(Path, sys.argv[1:4])
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
source, found = Sequences.open(tokens_dir), {}
rank = torch.distributed.get_rank()

def fresh(recipe):
    return make_stepper(AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32), recipe)

def steps(stepper, numbers):
    batches = [[source.batch(np.arange(8 * i + 4 * rank + 2 * k, 8 * i + 4 * rank + 2 * k + 2)) for k in (0, 1)] for i in numbers]
    return [stepper.step(b, source.num_labels(np.arange(8 * i, 8 * i + 8)), 1e-2) for i, b in zip(numbers, batches)]

for name, table in json.loads(sys.argv[4]).items():
    recipe = Recipe(**table)
    stepper = fresh(recipe)
    state = run(stepper, source, recipe, state=State())
    found[name] = {"losses": [r.loss for r in state.records], "stepper": type(stepper).__name__}
    if name.startswith("stage") or name == "muon":
        again = fresh(recipe)
        again.remember()
        steps(again, range(2))
        again.go_back()
        first = steps(again, range(3))
        again.remember()
        then = steps(again, range(3, 6))
        again.go_back()
        found[name] |= {"then": then, "again": steps(again, range(3, 6)), "first": first, "fresh": steps(fresh(recipe), range(3))}
if rank == 0:
    out.write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, tokens_dir: Path) -> dict:
    folder = tmp_path_factory.mktemp("group")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    tables = json.dumps({name: _SHARED | run for name, run in _RUNS.items()})
    arguments = [sys.executable, "-c", _WORKER, str(tiny_model_dir), str(tokens_dir), str(folder / "found.json"), tables]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    workers = []
    for rank in (0, 1):
        with (folder / f"{rank}.txt").open("w") as log:
            mine = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            workers.append(subprocess.Popen(arguments, cwd=Path(__file__).parents[2], env=mine, stdout=log, stderr=log))
    codes = [worker.wait(timeout=240) for worker in workers]
    assert codes == [0, 0], (folder / "0.txt").read_text()[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def alone(tiny_model_dir: Path, tokens_dir: Path) -> dict[str, list[float]]:
    """One process of plain torch, neither offloading nor recomputing."""
    import torch
    from transformers import AutoModelForCausalLM

    from train.corpus import Sequences
    from train.loop import run
    from train.plain import PlainStepper
    from train.state import State

    source, found = Sequences.open(tokens_dir), {}
    for name, table in _RUNS.items():
        kept = {key: value for key, value in table.items() if key not in ("offload", "gradient_checkpointing")}
        recipe = Recipe(**_SHARED | kept | {"num_workers": 1})
        stepper = PlainStepper(AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32), recipe)
        found[name] = [r.loss for r in run(stepper, source, recipe, state=State()).records]
    return found


@pytest.mark.parametrize("run", _RUNS)
def test_two_workers_take_the_steps_of_one_process(runs: dict, alone: dict, run: str):
    assert runs[run]["losses"] == pytest.approx(alone[run], rel=1e-4)
    assert runs[run]["stepper"] == ("PlainStepper" if Recipe(**_SHARED | _RUNS[run]).zero_stage == 0 else "ShardedStepper")


@pytest.mark.parametrize("run", [*(f"stage {stage}" for stage in range(4)), "muon"])
def test_every_worker_goes_back_to_where_it_was(runs: dict, run: str):
    found = runs[run]
    assert found["again"] == [pytest.approx(step, rel=1e-6) for step in found["then"]]
    assert found["first"] == [pytest.approx(step, rel=1e-6) for step in found["fresh"]]
