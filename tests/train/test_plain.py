from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from train.corpus import Sequences
from train.loop import run
from train.plain import PlainStepper
from train.recipe import Recipe
from train.state import State

RECIPE = {"steps": 6, "global_batch": 8, "micro_batch": 4, "sequence_length": 32, "learning_rate": 1e-3, "num_workers": 1}


def stepper(folder: Path, **changes) -> PlainStepper:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return PlainStepper(model, Recipe(**{**RECIPE, "precision": "float32", **changes}))


def losses(folder: Path, source: Sequences, **changes) -> list[float]:
    recipe = Recipe(**{**RECIPE, "precision": "float32", **changes})
    return [r.loss for r in run(stepper(folder, **changes), source, recipe, state=State()).records]


def test_the_plain_loop_needs_neither_ray_nor_deepspeed(tiny_model_dir: Path, tokens_dir: Path):
    program = f"""
import sys
sys.modules["ray"] = sys.modules["deepspeed"] = None
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM
from train.corpus import Sequences
from train.loop import run
from train.plain import PlainStepper
from train.recipe import Recipe
from train.state import State
recipe = Recipe(**{RECIPE | {"steps": 2}!r})
model = AutoModelForCausalLM.from_pretrained({str(tiny_model_dir)!r}, dtype=torch.float32)
state = run(PlainStepper(model, recipe), Sequences.open(Path({str(tokens_dir)!r})), recipe, state=State())
assert state.step == 2
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


def test_gradient_checkpointing_changes_no_step(tiny_model_dir: Path, tokens_dir: Path):
    source = Sequences.open(tokens_dir)
    assert losses(tiny_model_dir, source, gradient_checkpointing=True) == pytest.approx(losses(tiny_model_dir, source), rel=1e-6)


def test_muon_learns_too_and_the_z_loss_does_not_show_in_the_loss(tiny_model_dir: Path, tokens_dir: Path):
    source = Sequences.open(tokens_dir)
    adam, muon = losses(tiny_model_dir, source), losses(tiny_model_dir, source, optimizer="muon")
    assert muon[0] == adam[0]
    assert muon[-1] < muon[0] - 0.3
    pulled = losses(tiny_model_dir, source, z_loss=0.1)
    assert pulled[0] == adam[0]
    assert pulled[-1] != adam[-1]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_going_back_is_as_if_nothing_had_been(tiny_model_dir: Path, tokens_dir: Path, optimizer: str):
    source, model = Sequences.open(tokens_dir), stepper(tiny_model_dir, optimizer=optimizer)
    batches = [source.batch(np.arange(i, i + 4)) for i in range(0, 32, 4)]

    def steps(numbers: range) -> list[tuple[float, float]]:
        return [model.step([batches[i]], batches[i].num_labels, 1e-2) for i in numbers]

    model.remember()
    first = steps(range(3))
    model.remember()
    then = steps(range(3, 8))
    model.go_back()
    assert steps(range(3, 8)) == then
    fresh = stepper(tiny_model_dir, optimizer=optimizer)
    assert [fresh.step([batches[i]], batches[i].num_labels, 1e-2) for i in range(3)] == first


class Wrecked(Sequences):
    """Wherever a step takes the sequence `bad`, its targets are `worst`."""

    bad, worst = -1, torch.empty(0)

    def batch(self, indices):
        found = super().batch(indices)
        for row in np.flatnonzero(indices == self.bad):
            found.labels[row] = torch.where(found.labels[row] >= 0, self.worst, found.labels[row])
        return found


def test_a_run_with_a_spike_is_the_run_on_the_data_without_what_was_passed_over(tiny_model_dir: Path, tokens_dir: Path):
    """Loss for loss, to the last bit: the guard's promise."""
    from transformers import AutoModelForCausalLM

    order = np.zeros(64, dtype=np.int64)
    order[27] = 5
    wrecked = Wrecked.open(tokens_dir)
    wrecked.index, wrecked.bad = order, 5
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    wrecked.worst = model(Sequences.open(tokens_dir).batch(np.array([5])).input_ids).logits.argmin(-1)[0]
    changes = {"steps": 40, "global_batch": 1, "micro_batch": 1, "learning_rate": 1e-5, "guard": 3.0}
    recipe = Recipe(**RECIPE | changes, precision="float32")
    told = []
    state = run(stepper(tiny_model_dir, **changes), wrecked, recipe, state=State(), undone=told.append)
    assert [(skip.step, skip.first, skip.last) for skip in state.skips] == [(20, 20, 27)]
    assert told == state.skips
    clean = Sequences.open(tokens_dir)
    clean.index = np.concatenate([order[:20], order[28:], order[20:28]])
    without = run(stepper(tiny_model_dir, **changes), clean, recipe, state=State())
    assert not without.skips
    assert [r.loss for r in state.records] == [r.loss for r in without.records]
    assert [r.learning_rate for r in state.records] == [r.learning_rate for r in without.records]
