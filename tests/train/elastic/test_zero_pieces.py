"""Every layout of DeepSpeed's, in one process (two are in tests/train/test_sharded.py)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

_WORKER = """
import json, sys
import numpy as np, torch, torch.distributed
from transformers import AutoModelForCausalLM
from train.corpus import Sequences
from train.elastic.pieces import WEIGHT, Held, load, snapshot
from train.loop import run
from train.recipe import Recipe
from train.sharded import ShardedStepper
from train.state import State

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
tokens = np.random.default_rng(0).integers(0, 400, (8, 16)).astype(np.uint16)
source, found = Sequences([tokens], [np.ones_like(tokens)]), {}
for stage in (1, 2, 3):
    for precision in ("float32", "bfloat16"):
        recipe = Recipe(steps=1, global_batch=2, micro_batch=2, sequence_length=16, learning_rate=1e-2, num_workers=1,
                        zero_stage=stage, precision=precision, guard=0.0)
        model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        stepper = ShardedStepper(model, recipe)
        run(stepper, source, recipe, state=State())
        pieces = stepper.pieces()
        kept = {name: sum(p.count for p in pieces if p.name == name) for name in sizes}
        before = {name: w.clone() for name, w in stepper.weights().items()}
        held = snapshot(pieces)
        for piece in pieces:
            piece.window(piece.master).zero_()
        stepper.publish()
        lost = sum(float(w.abs().sum()) for w in stepper.weights().values())
        load(stepper.pieces(), Held(held))
        stepper.publish()
        found[f"{stage}-{precision}"] = {
            "whole": kept == sizes,
            "kinds": sorted({f.kind for f in held}),
            "lost": lost,
            "same": all(torch.equal(w, before[name]) for name, w in stepper.weights().items()),
            "computes": float(stepper.nll(source.batch(np.arange(2)))),
        }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def layouts(tiny_model_dir: Path) -> dict:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _WORKER, str(tiny_model_dir)], cwd=Path(__file__).parents[3], env={**os.environ, **alone},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_is_held_is_everything_and_comes_back(layouts: dict, stage: int, precision: str):
    found = layouts[f"{stage}-{precision}"]
    assert found["whole"]
    assert found["kinds"] == ["exp_avg", "exp_avg_sq", "step", "weight"]
    assert found["lost"] == 0.0
    assert found["same"]
    assert found["computes"] == pytest.approx(layouts["1-float32"]["computes"], rel=2e-2)
