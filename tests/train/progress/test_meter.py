from __future__ import annotations

import pytest
import torch

from train.architectures import make_config, make_model
from train.plan.shapes import ModelShape
from train.progress.meter import Meter, model_flops_per_token, peak_flops
from train.recipe import Recipe
from train.state import Record

CPU = torch.device("cpu")
RECIPE = Recipe(steps=100, global_batch=4, micro_batch=2, sequence_length=32, learning_rate=1e-3)
SHAPE = ModelShape(
    architecture="dense", vocab_size=400, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, intermediate_size=128,
    tie_embeddings=True, max_length=64,
)  # fmt: skip


def test_figures_are_the_formulas():
    counted = iter([5.0, 9.0])
    meter = Meter(RECIPE, CPU, flops_per_token=1e6, peak=64e6, joules=lambda: next(counted))
    meter.read(Record(1, 3.0, 100, 3.0, 1e-3, 1.0, 0))
    reading = meter.read(Record(2, 3.0, 120, 1.0, 1e-3, 1.0, 1))
    assert reading.tokens_per_second == 220 / 4
    assert reading.mfu == pytest.approx(2 * 4 * 32 * 1e6 / 4.0 / (2 * 64e6))  # padding is computed, too
    assert reading.seconds_left == 98 * 2.0
    assert reading.energy_joules == 9.0
    assert reading.memory_bytes > 50e6
    assert Meter(RECIPE, CPU, flops_per_token=None, peak=1.0, joules=None).read(Record(1, 3.0, 100, 3.0, 1e-3, 1.0)).mfu is None


def test_a_model_without_a_plan_costs_what_its_shape_says():
    found = model_flops_per_token(make_model(make_config(SHAPE)), 32)
    assert found == pytest.approx(SHAPE.train_flops_per_token(32), rel=0.02)


def test_frozen_weights_cost_no_gradient_of_their_own():
    model = make_model(make_config(SHAPE))
    whole = model_flops_per_token(model, 32)
    attention = 12.0 * 2 * 64 * 32 / 2
    model.requires_grad_(False)
    assert model_flops_per_token(model, 32) - attention == pytest.approx((whole - attention) * 2 / 3)


def test_a_processors_peak_is_measured():
    assert 1e9 < peak_flops(CPU, "float32") < 1e14
