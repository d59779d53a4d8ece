"""The arithmetic of shapes: FLOPs against torch's own counter, candidates in order and legal, tables there and back."""

from __future__ import annotations

import doctest
import itertools
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.plan import layers, shapes
from train.plan.layers import mean_span
from train.plan.shapes import Architecture, ModelShape, candidate_shapes, shape_of_width


def test_doctests():
    assert doctest.testmod(shapes).failed == doctest.testmod(layers).failed == 0


@pytest.mark.parametrize("width", [64, 96, 256])
@pytest.mark.parametrize("architecture", ["dense", "sliding", "alibi", "moe"])
def test_forward_flops_agree_with_torchs_counter(architecture, width):
    from torch.utils.flop_counter import FlopCounterMode

    length = 64
    shape = shape_of_width(width, vocab_size=512, max_length=length, architecture=architecture)
    model = built(shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, length, dtype=torch.long), use_cache=False)
    full_square = 4 * shape.num_layers * shape.num_heads * shape.head_dim * length * length
    causal = full_square * mean_span(shape.window or None, length) / length
    rotary = length * shape.head_dim  # the outer product of positions and frequencies
    counted = counter.get_total_flops() - full_square + causal
    assert abs(counted - shape.forward_flops_per_token(length) * length) <= 2 * rotary


@pytest.mark.parametrize("architecture", ["ssm", "hybrid", "linear"])
def test_the_matrices_of_recurrent_layers_are_those_of_the_model(architecture):
    """Their chunked scans do other sums than the recurrence that is counted, so the linear layers are compared, and the rest by hand."""
    shape = shape_of_width(256, vocab_size=512, max_length=64, architecture=architecture)
    linear = sum(module.weight.numel() for module in built(shape).modules() if isinstance(module, torch.nn.Linear))
    assert linear == sum(part.matrices for part in shape.parts) + shape.vocab_size * shape.hidden_size
    recurrent = [part for part in shape.parts if part.state]
    heads, width, keys = shape.state_heads, shape.state_head_dim, shape.state_size
    channels = heads * width + 2 * keys * (heads if architecture == "linear" else 1)
    per_value = 7 if architecture == "linear" else 5
    assert {part.recurrence for part in recurrent} == {per_value * heads * width * keys + 2 * 4 * channels}
    assert len(recurrent) == sum(not shape.attends(layer) for layer in range(shape.num_layers))


def built(shape: ModelShape) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    from train.architectures import make_config

    config = make_config(shape)
    config._attn_implementation = "eager"  # its matrix products are visible to the counter, over the full square
    config._experts_implementation = "eager"  # so are those of the experts
    return AutoModelForCausalLM.from_config(config)


@given(st.sampled_from(get_args(Architecture)), st.sampled_from([64, 128, 256, 1024]), st.integers(1, 300))
def test_a_longer_context_costs_no_less(architecture, width, context):
    shape = shape_of_width(width, vocab_size=512, max_length=256, architecture=architecture)
    assert shape.cache_bytes(context + 1) - shape.cache_bytes(context) in (0, shape.kv_bytes_per_token())
    assert shape.cache_bytes(context) >= shape.state_bytes()
    assert shape.forward_flops_per_token(context + 1) >= shape.forward_flops_per_token(context)
    assert shape.num_active_parameters <= shape.num_parameters


@given(st.integers(1, 60), st.integers(1, 60))
def test_the_mean_span_is_that_of_the_tokens(window, length):
    assert mean_span(window, length) == pytest.approx(sum(min(window, place) for place in range(1, length + 1)) / length)


def test_training_costs_about_six_flops_per_parameter_and_token():
    shape = shape_of_width(2048, vocab_size=32_000, max_length=2048)
    assert shape.train_flops_per_token(2048) / (6 * shape.num_parameters) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(("width", "layers"), [(1024, 18), (2048, 23), (4096, 32), (5120, 40), (8192, 64), (12288, 96), (16384, 128)])
def test_depth_grows_as_in_models_that_people_have_trained(width, layers):
    assert shape_of_width(width, vocab_size=32_000, max_length=2048).num_layers == layers


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_candidates_of_every_architecture_grow(architecture):
    sizes = [shape.num_parameters for shape in candidate_shapes(vocab_size=8192, max_length=512, architecture=architecture)]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 8e9


def test_candidates_grow_and_are_legal():
    found = list(candidate_shapes(vocab_size=8192, max_length=512))
    sizes = [shape.num_parameters for shape in found]
    assert sizes == sorted(sizes)
    assert sizes[0] < 1.5e6
    assert sizes[-1] > 3e11, "what the largest budgets make worthwhile is among them"
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


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_a_table_goes_there_and_back(architecture):
    shape = shape_of_width(320, vocab_size=8192, max_length=512, architecture=architecture)
    assert ModelShape.from_table(shape.table()) == shape
    assert 0 not in [value for name, value in shape.table().items() if name != "tie_embeddings"]


@pytest.mark.parametrize(
    ("architecture", "key", "value", "message"),
    [
        ("sliding", "window", 0, "at least 1"),
        ("dense", "window", 64, "architecture dense has no such thing"),
        ("ssm", "intermediate_size", 64, "architecture ssm has no such thing"),
        ("ssm", "state_heads", 3, "twice hidden_size"),
        ("hybrid", "head_dim", 32, "must make hidden_size"),
        ("moe", "experts_per_token", 9, "of 8 experts"),
        ("linear", "attention_every", 9, "of 8 layers none"),
        ("alibi", "intermediate_size", 640, "4 \\* hidden_size"),
    ],
)
def test_what_an_architecture_cannot_have_is_refused(architecture, key, value, message):
    table = shape_of_width(256, vocab_size=8192, max_length=512, architecture=architecture).table() | {key: value}
    with pytest.raises(ValueError, match=message):
        ModelShape.from_table(table, where="plan.toml")


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
