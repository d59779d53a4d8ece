"""What the layers of a model hold and cost, by arithmetic; test_shapes.py and test_architectures.py hold it to the models."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.plan import layers
from train.plan.layers import layer_parts, mean_span
from train.plan.shapes import shape_of_width


def test_doctests():
    assert doctest.testmod(layers).failed == 0


@given(st.integers(1, 60), st.none() | st.integers(1, 80))
def test_the_mean_span_is_that_of_all_queries_one_by_one(length, window):
    seen = [min(place + 1, window or length) for place in range(length)]
    assert mean_span(window, length) == pytest.approx(sum(seen) / length)


def parts_of(architecture):
    shape = shape_of_width(128, vocab_size=512, max_length=64, architecture=architecture)
    return shape, list(layer_parts(shape))


@pytest.mark.parametrize("architecture", ["dense", "sliding", "alibi", "moe", "ssm", "hybrid", "linear"])
def test_every_layer_mixes_tokens_by_attention_or_by_a_state(architecture):
    shape, parts = parts_of(architecture)
    mixers = parts if architecture == "ssm" else parts[::2]
    assert len(mixers) == shape.num_layers
    assert all((part.attends > 0) != (part.state > 0) for part in mixers)
    assert {part.attends > 0 for part in mixers} == {"ssm": {False}, "hybrid": {True, False}, "linear": {True, False}}.get(
        architecture, {True}
    )
    assert all(part.attends == part.state == 0 for part in ([] if architecture == "ssm" else parts[1::2]))


def test_a_token_visits_some_experts_and_the_others_are_idle():
    shape, parts = parts_of("moe")
    expert = 3 * shape.hidden_size * shape.intermediate_size
    for part in parts[1::2]:
        assert part.idle == (shape.num_experts - shape.experts_per_token) * expert
        assert part.matrices - shape.hidden_size * shape.num_experts == shape.experts_per_token * expert
