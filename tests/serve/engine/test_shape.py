"""A shape is a value: what it says per layer has a value per layer, and its window is what may be forgotten behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.engine.shape import Experts, Shape


def make_shape(num_layers: int = 2) -> Shape:
    sizes = {"num_layers": num_layers, "hidden_size": 8, "mlp_size": 8, "num_heads": 4, "num_kv_heads": 2, "head_dim": 2, "vocab_size": 9}
    layers = {"windows": (None,) * num_layers, "ropes": (), "rope_of": (None,) * num_layers, "sparse": (False,) * num_layers}
    return Shape(**sizes, **layers, max_length=16, eos_token_ids=(), tied=True, norm_eps=1e-6, attention_scale=1.0)


@given(st.lists(st.one_of(st.none(), st.integers(1, 40)), min_size=1, max_size=6), st.integers(0, 100))
def test_nothing_behind_the_window_is_ever_seen(windows: list[int | None], position: int) -> None:
    window = replace(make_shape(len(windows)), windows=tuple(windows)).window
    earliest = min(0 if each is None else max(0, position - each + 1) for each in windows)
    assert earliest >= (0 if window is None else max(0, position - window + 1))
    assert (window is None) == (None in windows)


@pytest.mark.parametrize(
    "change",
    [{"windows": (None,)}, {"rope_of": (0, 0, 0)}, {"sparse": (True,)}, {"sparse": (True, False)}, {"num_kv_heads": 3}],
)
def test_a_shape_that_contradicts_itself_is_not_made(change: dict[str, object]) -> None:
    with pytest.raises(AssertionError):
        replace(make_shape(), **change)


def test_equal_folders_have_equal_shapes_and_may_be_keys() -> None:
    experts = Experts(count=4, per_token=2, size=8, normalise=True)
    sparse = replace(make_shape(), experts=experts, sparse=(True, False))
    assert {make_shape(): 1, sparse: 2}[replace(sparse)] == 2
