"""Where a model's modules stand in its fused products, and the scale of an update, as peft has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve.engine.families import read_shape
from serve.engine.lora import Place, _scale, places
from serve.engine.parts import parts_of
from serve.engine.shape import Shape
from serve.engine.weights import read_config


@pytest.fixture(scope="module")
def shape(tiny_model_dir: Path) -> Shape:
    return read_shape(read_config(tiny_model_dir), "tiny")


def test_every_projection_has_its_rows_in_a_product(shape: Shape) -> None:
    """The tiny model: 4 heads and 2 KV heads of 16, hidden 64, MLP 128."""
    found = places(shape, parts_of(shape, ()))
    assert len(found) == 7 * shape.num_layers
    name = "model.layers.1.self_attn"
    assert found[f"{name}.q_proj"] == Place(1, "qkv", 0, 64, 64)
    assert found[f"{name}.k_proj"] == Place(1, "qkv", 64, 32, 64)
    assert found[f"{name}.v_proj"] == Place(1, "qkv", 96, 32, 64)
    assert found[f"{name}.o_proj"] == Place(1, "out", 0, 64, 64)
    assert found["model.layers.0.mlp.up_proj"] == Place(0, "gate_up", 128, 128, 64)
    assert found["model.layers.0.mlp.down_proj"] == Place(0, "down", 0, 64, 128)


def test_modules_that_the_folder_holds_fused_are_one_place(shape: Shape) -> None:
    stored = [f"model.layers.{i}.{name}.weight" for i in range(2) for name in ("self_attn.qkv_proj", "mlp.gate_up_proj")]
    found = places(shape, parts_of(shape, stored))
    assert found["model.layers.0.self_attn.qkv_proj"] == Place(0, "qkv", 0, 128, 64)
    assert found["model.layers.1.mlp.gate_up_proj"] == Place(1, "gate_up", 0, 256, 64)


def test_an_mlp_without_a_gate_has_one_matrix_going_up(shape: Shape) -> None:
    found = places(replace(shape, gated=False), parts_of(replace(shape, gated=False), ()))
    assert [place.num_rows for place in found.values() if place.product == "gate_up"] == [128, 128]


QUERY = "model.layers.3.self_attn.q_proj"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"lora_alpha": 16}, 2.0),
        ({}, 1.0),
        ({"lora_alpha": 16, "use_rslora": True}, 16 / 8**0.5),
        ({"lora_alpha": 16, "alpha_pattern": {"q_proj": 4}}, 0.5),
        ({"lora_alpha": 16, "alpha_pattern": {"k_proj": 4}}, 2.0),
        ({"lora_alpha": 16, "alpha_pattern": {r"layers\.\d\.self_attn\.q_proj": 24}}, 3.0),
        ({"lora_alpha": 16, "alpha_pattern": {"proj": 4}}, 2.0),
    ],
)
def test_the_scale_is_pefts(config: dict[str, Any], expected: float) -> None:
    assert _scale(config, QUERY, 8) == pytest.approx(expected)
