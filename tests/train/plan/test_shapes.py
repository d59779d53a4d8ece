"""The arithmetic of shapes: FLOPs against torch's own counter, candidates in order and legal, tables there and back."""

from __future__ import annotations

import doctest
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.plan import shapes
from train.plan.shapes import ModelShape, candidate_shapes, shape_of_width


def test_doctests():
    assert doctest.testmod(shapes).failed == 0


@pytest.mark.parametrize("width", [64, 96, 256])
def test_forward_flops_agree_with_torchs_counter(width):
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM

    from train.architectures import make_config

    length = 64
    shape = shape_of_width(width, vocab_size=512, max_length=length)
    config = make_config(shape)
    config._attn_implementation = "eager"  # its matrix products are visible to the counter, over the full square
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, length, dtype=torch.long), use_cache=False)
    full_square = 4 * shape.num_layers * shape.num_heads * shape.head_dim * length * length
    causal = full_square * (length + 1) / (2 * length)
    rotary = length * shape.head_dim  # the outer product of positions and frequencies
    counted = counter.get_total_flops() - full_square + causal
    assert abs(counted - shape.forward_flops_per_token(length) * length) <= 2 * rotary


def test_training_costs_about_six_flops_per_parameter_and_token():
    shape = shape_of_width(2048, vocab_size=32_000, max_length=2048)
    assert shape.train_flops_per_token(2048) / (6 * shape.num_parameters) == pytest.approx(1.0, abs=0.1)


def test_candidates_grow_and_are_legal():
    found = list(candidate_shapes(vocab_size=8192, max_length=512))
    sizes = [shape.num_parameters for shape in found]
    assert sizes == sorted(sizes)
    assert sizes[0] < 1.5e6
    assert sizes[-1] > 10e9
    assert all(b / a < 2.5 for a, b in itertools.pairwise(sizes))
    for shape in found:
        assert shape.num_heads * shape.head_dim == shape.hidden_size
        assert shape.num_heads % shape.num_kv_heads == 0
        assert shape.intermediate_size % 64 == 0
        assert 2 <= shape.intermediate_size / shape.hidden_size <= 3.2


@given(st.integers(1, 10**9))
def test_max_parameters_is_kept(limit):
    assert all(shape.num_parameters <= limit for shape in candidate_shapes(vocab_size=1000, max_length=64, max_parameters=limit))


def test_kv_bytes():
    assert shape_of_width(256, vocab_size=8192, max_length=512).kv_bytes_per_token() == 2 * 8 * 2 * 64 * 2


def test_a_table_goes_there_and_back():
    shape = shape_of_width(320, vocab_size=8192, max_length=512)
    assert ModelShape.from_table(shape.table()) == shape


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_kv_heads", 3, "does not divide"),
        ("hidden_size", 0, "at least 1"),
        ("head_dim", 31, "even"),
        ("vocab_size", "many", "vocab_size"),
    ],
)
def test_impossible_shapes_are_refused_in_one_line(key, value, message):
    table = shape_of_width(256, vocab_size=8192, max_length=512).table() | {key: value}
    with pytest.raises(ValueError, match=message) as caught:
        ModelShape.from_table(table, where="plan.toml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("plan.toml")
