"""Rotary embeddings: every variant has transformers' frequencies to the bit, and tables grow as they are asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from serve.engine.families import read_shape
from serve.engine.rope import Rope, Rotation

BASE: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 256,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}
STRETCHED = {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 1024}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 5e5},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0},
    "yarn": {"rope_type": "yarn", **STRETCHED},
    "yarn, all said": {"rope_type": "yarn", **STRETCHED, "beta_fast": 20.0, "beta_slow": 2.0, "attention_factor": 1.3, "truncate": False},
    "yarn, mscale": {"rope_type": "yarn", **STRETCHED, "mscale": 1.1, "mscale_all_dim": 0.8},
    "llama3": {"rope_type": "llama3", **STRETCHED, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": 1024,
        "short_factor": [1.0 + i / 40 for i in range(32)],
        "long_factor": [1.0 + i for i in range(32)],
    },
}


def theirs(parameters: dict[str, Any], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos, sin [length, head_dim] of transformers' module for a text of this length."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    module = LlamaRotaryEmbedding(LlamaConfig(**BASE, rope_parameters=dict(parameters)))
    cos, sin = module(torch.zeros(1), torch.arange(length)[None])
    return cos[0], sin[0]


def ours(parameters: dict[str, Any], length: int, max_length: int) -> torch.Tensor:
    shape = read_shape({"architectures": ["LlamaForCausalLM"], **BASE, "rope_parameters": parameters}, "here")
    return Rotation(shape.ropes[0], max_length, torch.device("cpu")).upto(length)[:, :length]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("length", [1000, 4000])
def test_angles_are_transformers_angles(variant: str, length: int) -> None:
    cos, sin = theirs(VARIANTS[variant], length)
    table = ours(VARIANTS[variant], length, max_length=length)
    assert torch.equal(table[0], cos[:, :32])
    assert torch.equal(table[1], sin[:, :32])


def test_longrope_is_chosen_by_the_engines_length_and_not_by_the_texts() -> None:
    short, long = (ours(VARIANTS["longrope"], 100, max_length) for max_length in (1024, 1025))
    assert not torch.equal(short, long)
    assert torch.equal(long, ours(VARIANTS["longrope"], 3000, 4096)[:, :100])


def test_part_of_a_head_is_turned() -> None:
    shape = read_shape({"architectures": ["Phi3ForCausalLM"], **BASE, "partial_rotary_factor": 0.25}, "here")
    assert shape.ropes[0].dim == 16
    assert Rotation(shape.ropes[0], 64, torch.device("cpu")).table.shape == (2, 64, 8)


def test_a_table_grows_by_doubling_and_keeps_its_values() -> None:
    rotation = Rotation(Rope(kind="default", theta=1e4, dim=8), 100_000, torch.device("cpu"))
    first = rotation.table
    assert first.shape[1] == 1024
    assert rotation.upto(1024) is first
    grown = rotation.upto(1025)
    assert grown.shape[1] == 2048
    assert torch.equal(grown[:, :1024], first)
    assert rotation.upto(99_000).shape[1] == 99_000
    assert rotation.upto(99_001).shape[1] == 100_000, "never beyond the longest text"
