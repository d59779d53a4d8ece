"""ZeRO on two processes against one process of plain torch (no Ray: the stepper needs only a process group)."""

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
from pathlib import Path
import torch, torch.distributed
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from train.checkpoint import Checkpoints, newest, restore
from train.recipe import Recipe
from train.corpus import Sequences
from train.loop import held_out_loss, run
from train.state import State
from train.sharded import ShardedStepper
from train.plain import PlainStepper
from train.tuning.embeddings import with_updates

model_dir, tokens_dir, scratch, out = map(Path, sys.argv[1:5])
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
source, found = Sequences.open(tokens_dir), {}
for kind, precision, stage in [
    *(("full", "float32", stage) for stage in range(4)), ("full", "bfloat16", 2), ("lora", "float32", 2)
]:
    recipe = Recipe(steps=6, global_batch=8, micro_batch=2, sequence_length=32, learning_rate=1e-3, clip=0.5,
                    num_workers=2, zero_stage=stage, precision=precision, checkpoint_every=3)
    def fresh():
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        torch.manual_seed(0)
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        stepper = ShardedStepper if stage else PlainStepper
        if kind == "full":
            return stepper(model, recipe)
        tuned = get_peft_model(model, lora)
        with_updates(model, 4, 2.0)
        return stepper(tuned, recipe)
    stepper, place = fresh(), str(scratch / f"{kind}-{precision}-{stage}")
    before = held_out_loss(stepper, source, 4)
    checkpoints = Checkpoints(place, stepper, "0")
    state = run(stepper, source, recipe, state=State(), checkpoint=lambda s: checkpoints.save(s) if s.step == 3 else None)
    checkpoints.settle()
    stepper.barrier()
    weights = stepper.weights()
    resumed = fresh()
    again = run(resumed, source, recipe, state=restore(newest(place), resumed))
    crossed = again
    if kind == "full" and precision == "float32":
        crossed = fresh()
        crossed = run(crossed, source, recipe, state=restore(newest(str(scratch / "full-float32-0")), crossed))
    if stepper.rank == 0:
        found[f"{kind}-{precision}-{stage}"] = {
            "before": before,
            "losses": [r.loss for r in state.records],
            "norms": [r.gradient_norm for r in state.records],
            "resumed": [r.loss for r in again.records],
            "crossed": [r.loss for r in crossed.records],
            "norm_of_weights": {name: float(w.double().norm()) for name, w in weights.items()},
        }
if torch.distributed.get_rank() == 0:
    out.write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def runs(folder: Path, tiny_model_dir: Path, tokens_dir: Path) -> dict:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = [sys.executable, "-c", _WORKER, str(tiny_model_dir), str(tokens_dir), str(folder), str(folder / "found.json")]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    workers = []
    for rank in (0, 1):
        with (folder / f"{rank}.txt").open("w") as log:
            mine = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            workers.append(subprocess.Popen(arguments, cwd=root, env=mine, stdout=log, stderr=log))
    codes = [worker.wait(timeout=240) for worker in workers]
    assert codes == [0, 0], (folder / "0.txt").read_text()[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def plain(tiny_model_dir: Path, tokens_dir: Path) -> dict:
    import torch
    from transformers import AutoModelForCausalLM

    from train.corpus import Sequences
    from train.loop import held_out_loss, run
    from train.plain import PlainStepper
    from train.recipe import Recipe
    from train.state import State

    recipe = Recipe(
        steps=6, global_batch=8, micro_batch=8, sequence_length=32, learning_rate=1e-3, clip=0.5, num_workers=1, precision="float32"
    )
    stepper = PlainStepper(AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32), recipe)
    source = Sequences.open(tokens_dir)
    before = held_out_loss(stepper, source, 4)
    state = run(stepper, source, recipe, state=State())
    norms = {name: float(w.double().norm()) for name, w in stepper.weights().items()}
    return {
        "before": before,
        "losses": [r.loss for r in state.records],
        "norms": [r.gradient_norm for r in state.records],
        "weights": norms,
    }


@pytest.fixture(scope="module")
def resumed_alone(runs: dict, folder: Path, tiny_model_dir: Path, tokens_dir: Path) -> dict:
    """Each run's losses when one process of plain torch goes on from what two workers saved."""
    import torch
    from transformers import AutoModelForCausalLM

    from train.checkpoint import newest, restore
    from train.corpus import Sequences
    from train.loop import run
    from train.plain import PlainStepper
    from train.recipe import Recipe

    found = {}
    for kind in (*(f"full-float32-{stage}" for stage in range(4)), "full-bfloat16-2"):
        recipe = Recipe(
            steps=6, global_batch=8, micro_batch=8, sequence_length=32, learning_rate=1e-3, clip=0.5, num_workers=1,
            precision=kind.split("-")[1],
        )  # fmt: skip
        stepper = PlainStepper(AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32), recipe)
        saved = newest(str(folder / kind))
        assert saved is not None
        again = run(stepper, Sequences.open(tokens_dir), recipe, state=restore(saved, stepper))
        found[kind] = [r.loss for r in again.records]
    return found


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_zero_stage_takes_the_steps_of_one_process(runs: dict, plain: dict, stage: int):
    found = runs[f"full-float32-{stage}"]
    assert found["before"] == pytest.approx(plain["before"], rel=1e-5)
    assert found["losses"] == pytest.approx(plain["losses"], rel=1e-4)
    assert found["norms"] == pytest.approx(plain["norms"], rel=1e-3)
    assert found["norm_of_weights"] == pytest.approx(plain["weights"], rel=1e-4)


def test_bfloat16_stays_near(runs: dict, plain: dict):
    assert runs["full-bfloat16-2"]["losses"] == pytest.approx(plain["losses"], rel=1e-2)


def test_lora_trains_only_its_own_weights(runs: dict):
    found = runs["lora-float32-2"]
    assert found["losses"][-1] < found["losses"][0]
    assert found["norm_of_weights"]
    update = "embed_tokens.parametrizations.weight.0."
    assert all(".lora_" in name or update in name for name in found["norm_of_weights"])
    assert any(update in name for name in found["norm_of_weights"])


@pytest.mark.parametrize("run", [*(f"full-float32-{stage}" for stage in range(4)), "full-bfloat16-2", "lora-float32-2"])
def test_a_restored_run_continues_the_curve(runs: dict, run: str):
    assert runs[run]["resumed"] == pytest.approx(runs[run]["losses"], rel=1e-6)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_checkpoint_of_whole_parameters_is_read_by_every_stage(runs: dict, stage: int):
    assert runs[f"full-float32-{stage}"]["crossed"] == pytest.approx(runs["full-float32-0"]["losses"], rel=1e-6)


@pytest.mark.parametrize("run", [*(f"full-float32-{stage}" for stage in range(4)), "full-bfloat16-2"])
def test_one_process_goes_on_from_what_two_workers_saved(runs: dict, resumed_alone: dict, run: str):
    assert resumed_alone[run] == pytest.approx(runs[run]["losses"], rel=2e-3 if "bfloat16" in run else 1e-6)
