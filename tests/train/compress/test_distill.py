"""A student that learns a teacher's distribution through pretraining's loop, and the settings that cannot work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from train.compress.distil_loss import DistilLoss
from train.compress.distill import distill
from train.compress.distill_config import DistillConfig
from train.corpus import Sequences
from train.loop import held_out_loss, run
from train.plain import PlainStepper
from train.recipe import Recipe
from train.state import State


def model_of(folder: Path, *, layers: int | None = None) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    if layers is None:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, num_hidden_layers=layers))


def test_a_student_with_fewer_layers_comes_closer_to_a_live_teacher(tiny_model_dir: Path, tokens_dir: Path):
    source = Sequences.open(tokens_dir)
    recipe = Recipe(
        steps=12, global_batch=8, micro_batch=4, sequence_length=32, learning_rate=3e-3, num_workers=1, precision="float32", guard=0.0
    )
    stepper = PlainStepper(DistilLoss(model_of(tiny_model_dir, layers=1), model_of(tiny_model_dir)), recipe)
    before = held_out_loss(stepper, source, 8)
    run(stepper, source, recipe, state=State())
    assert held_out_loss(stepper, source, 8) < 0.9 * before
    assert not [name for name in stepper.weights() if name.startswith("teacher")]


@pytest.mark.usefixtures("in_process")
def test_the_verb_makes_a_model_folder(tiny_model_dir: Path, tokens_dir: Path, plan_file: Path, tmp_path: Path, capsys):
    config = DistillConfig(
        teacher=str(tiny_model_dir), plan=str(plan_file), output=str(tmp_path / "student"), num_workers=1, precision="float32"
    )
    made = distill(config)
    assert made.manifest.headline.startswith("KL to the teacher")
    assert made.manifest.metrics["steps"] == 6
    student, teacher = model_of(tmp_path / "student"), model_of(tiny_model_dir)
    source = Sequences.open(tokens_dir)
    with torch.no_grad():
        kl = float(DistilLoss(student.eval(), teacher)(*source.batch(np.arange(16)).tensors)) / source.num_labels(np.arange(16))
    assert kl == pytest.approx(made.manifest.metrics["final_loss"], rel=0.6)
    assert distill(config).digest == made.digest
    assert "already done" in capsys.readouterr().err


def test_a_student_folder_brings_its_own_settings(tiny_model_dir: Path, tokens_dir: Path, monkeypatch):
    seen: list[Any] = []
    monkeypatch.setattr("train.compress.distill.trained", lambda *given: seen.append(given))
    distill(DistillConfig(teacher="t", student=str(tiny_model_dir), tokens=str(tokens_dir), output="o", steps=40))
    ((config, plan, _),) = seen
    assert (config.teacher, config.steps) == ("t", 40)
    assert plan["model"] == {"from": str(tiny_model_dir)}
    assert [plan["train"][name] for name in ("steps", "warmup_steps", "sequence_length", "global_batch")] == [40, 2, 32, 32]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "plan: give either --plan, whose model is the student, or --student"),
        ({"plan": "p", "student": "s", "tokens": "t"}, "plan: give either"),
        ({"student": "s"}, "tokens: a --student needs --tokens"),
        ({"student": "s", "tokens": "t", "global_batch": 0}, "global_batch: is 0; must be at least 1"),
        ({"plan": "p", "global_batch": 64}, "global_batch: is the plan's"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        DistillConfig(teacher="m", output="o", **fields)


def test_a_student_of_another_vocabulary_is_refused(tiny_model_dir: Path, plan_file: Path, tmp_path: Path):
    plan_file.write_text(plan_file.read_text().replace("vocab_size = 400", "vocab_size = 512"))
    with pytest.raises(ValueError, match="logits, the student 512"):
        distill(DistillConfig(teacher=str(tiny_model_dir), plan=str(plan_file), output=str(tmp_path / "out")))
