from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.train.tuning.tuned import base, config_of, pairs_of
from train.corpus import IGNORED
from train.loop import held_out_loss, run
from train.plain import PlainStepper
from train.recipe import Recipe
from train.state import State
from train.tuning.methods import attach, objective
from train.tuning.preference_loss import PreferenceLoss, log_likelihoods
from train.tuning.preferences import Pairs


def test_the_loss_is_the_papers(tiny_model_dir: Path, tmp_path: Path):
    pairs = pairs_of(tiny_model_dir)
    pairs.save(tmp_path)
    batch = Pairs.open(tmp_path).batch(np.array([3, 11]))
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    with torch.no_grad():
        logits = model(batch.input_ids).logits.log_softmax(-1)
        targets = batch.labels.clamp(min=0)
        log_p = (logits.gather(2, targets[..., None])[..., 0] * (batch.labels != IGNORED)).sum(1)
        torch.testing.assert_close(log_likelihoods(model, *batch.tensors[:3]), log_p)
        torch.testing.assert_close(batch.reference, log_p)
        assert float(PreferenceLoss(model, 0.3)(*batch.tensors)) == pytest.approx(2 * math.log(2), rel=1e-4)  # nothing learnt yet
        moved = torch.tensor([0.5, -0.25, 0.0, 1.0])
        margins = [(0.5 + 0.25) * 0.3, -1.0 * 0.3]
        expected = sum(math.log1p(math.exp(-margin)) for margin in margins)
        found = PreferenceLoss(model, 0.3)(*batch.tensors[:3], batch.reference - moved)
    assert float(found) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_preferences_are_learnt(method: str, tiny_model_dir: Path):
    pairs = pairs_of(tiny_model_dir)
    config = config_of(method, objective="preferences")
    recipe = Recipe(
        steps=8, global_batch=4, micro_batch=2, sequence_length=64, learning_rate=1e-2, weight_decay=0.0, num_workers=1, zero_stage=0,
        precision="float32", guard=0.0,
    )  # fmt: skip
    stepper = PlainStepper(objective(attach(base(tiny_model_dir), config, 8), config, 8), recipe)
    before = held_out_loss(stepper, pairs, 4)
    run(stepper, pairs, recipe, state=State())
    assert method != "lora" or before == pytest.approx(math.log(2), rel=1e-4)
    assert held_out_loss(stepper, pairs, 4) < before - 0.1
