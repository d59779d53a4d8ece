from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from train.optimize.prepare import prepared
from train.recipe import Recipe

RECIPE = Recipe(steps=1, global_batch=1, micro_batch=1, sequence_length=8, learning_rate=1e-3, num_workers=1, z_loss=1e-4)


def test_the_objective_has_what_the_recipe_asks_for(tiny_model_dir: Path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    assert prepared(model, RECIPE).z_loss == 1e-4
    assert not model.is_activation_checkpointing
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        prepared(model, replace(RECIPE, gradient_checkpointing=True))
    assert model.is_activation_checkpointing


def test_a_model_that_cannot_compute_again_is_named(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(ValueError, match="gradient_checkpointing: LlamaForCausalLM does not support it; switch it off"):
        prepared(model, replace(RECIPE, gradient_checkpointing=True))
