from __future__ import annotations

from pathlib import Path

import pytest
import torch

from train.plain import PlainStepper
from train.recipe import Recipe
from train.steppers import make_stepper

RECIPE = {"steps": 1, "global_batch": 2, "micro_batch": 1, "sequence_length": 8, "learning_rate": 1e-3}


@pytest.mark.parametrize("layout", [{"num_workers": 1, "zero_stage": 2}, {"num_workers": 1, "zero_stage": 0, "optimizer": "muon"}])
def test_nothing_to_shard_is_plain_torch(tiny_model_dir: Path, layout: dict):
    """What is sharded, and that it takes the same steps, is test_group's affair."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    assert isinstance(make_stepper(model, Recipe(**RECIPE, **layout)), PlainStepper)
