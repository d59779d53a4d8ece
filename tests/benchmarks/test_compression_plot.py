"""The comparison's pictures: components in their order, rounds as lines, and files that are pictures."""

from __future__ import annotations

import doctest

import numpy as np

import benchmarks.compression_plot
from benchmarks.compression_plot import components, draw_rounds, draw_shapes, round_lines

BEFORE = {"perplexity": 60.0, "fdt_mean": 3.0, "flips": 0.2}
AFTER = {"perplexity": 50.0, "fdt_mean": 6.0, "flips": 0.1}
ROUNDS = [{"guide": guide, "sparsity": share, "before": BEFORE, "after": AFTER} for guide in ("uniform", "fdt") for share in (0.3, 0.5)]
SHAPES = {
    f"model.layers.{layer}.{name}|{percent}": {"fdt_mean": 60.0 - percent / 2, "flips": percent / 200}
    for layer in (10, 2)
    for name in ("mlp.gate_proj", "self_attn.k_proj")
    for percent in (50, 95)
}


def test_the_worked_example():
    assert doctest.testmod(benchmarks.compression_plot).failed == 0


def test_components_stand_by_kind_and_then_by_layer():
    names, percents, table = components(SHAPES, "flips")
    assert names == ["k 2", "k 10", "gate 2", "gate 10"]
    assert percents == [50, 95]
    assert np.allclose(table, [[0.25, 0.475]] * 4)


def test_a_round_is_two_points_pruned_and_recovered():
    assert round_lines(ROUNDS, "flips")["fdt"] == ([30.0, 30.0, 50.0, 50.0], [0.2, 0.1, 0.2, 0.1])


def test_pictures_are_written(tmp_path):
    draw_shapes(SHAPES, str(tmp_path / "a.png"))
    draw_rounds({"original": {"perplexity": 40.0}, "rounds": ROUNDS}, str(tmp_path / "b.png"))
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("a.png", "b.png"))
