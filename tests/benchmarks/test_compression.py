"""The compression comparison's table, its draws of prompts, and that a figure is measured once."""

from __future__ import annotations

import pytest

from benchmarks.compression import Figures
from benchmarks.compression_bench import parts_of
from benchmarks.compression_table import told

ROW = {
    "bytes": 4_600_000,
    "share": 0.353,
    "flips": 0.0134,
    "flips_upper": 0.0154,
    "kl": 2.7e-3,
    "kl_p99": 2.2e-2,
    "fdt_median": 64,
    "fdt_p10": 3,
}
ROW |= {"perplexity": 1.702}
SECONDS = {"offer": 40.0, "search": 30.0}


def test_a_kept_and_a_broken_budget_are_told_apart():
    rows = {"0.02": ROW | {"seconds": SECONDS}, "0.005": ROW | {"seconds": SECONDS}}
    lines = told({"budgets": rows}).splitlines()
    assert "met    certificate of 2.0%: 1.54%" in lines
    assert "MISSED certificate of 0.5%: 1.54%" in lines
    assert any(line.startswith("met    the search takes 70 to 70 s") for line in lines)


def test_a_looser_budget_with_a_larger_plan_is_a_miss():
    said = told({"kernels": {"0.02": ROW, "0.05": ROW | {"bytes": 4_500_000}}})
    assert "met    looser budgets give no larger plans" in said
    assert "MISSED looser budgets" in told({"kernels": {"0.05": ROW | {"bytes": 4_700_000}, "0.02": ROW}})


def test_a_loss_at_equal_bytes_is_called_one():
    better = ROW | {"flips": 0.01}
    assert "MISSED" not in told({"equal": {"int8": ROW, "ours|4600000": better}})
    assert "MISSED" in told({"equal": {"int8": better, "ours|4600000": ROW}})
    assert "MISSED at the size of 2.0%: ours 1.34%, the best other (fdt, per_byte) 1.00%" in told(
        {"greedy": {"0.02|fdt, per_byte": better, "0.02|perplexity, per_byte": ROW, "0.02|ours": ROW}}
    )


def test_the_promise_counts_passes_and_what_fresh_prompts_say():
    draw = {"bytes": 4_600_000, "pass": True, "boldest": True, "tested": 4, "fresh": {"flips": 0.012}}
    text = told(
        {"promise": {"1": draw, "2": draw | {"fresh": {"flips": 0.03}}, "3": draw | {"pass": False, "boldest": False, "tested": 1}}}
    )
    assert "2 certificates pass, 2 of them of the boldest plan (3.0 plans tested each)" in text
    assert "on fresh prompts 1 of those that passed keep to it" in text
    assert text.count("MISSED") == 2


def test_shapes_and_cost_are_tables():
    figures = {"shapes": {"a.q|50": {"fdt_mean": 60.0}, "a.q|90": {"fdt_mean": 12.5}}}
    assert "| a.q | 60.0 | 12.5 |" in told(figures)
    cost = {"matrices": 15, "joint_passes": 12, "passes": 13.5, "offer_s": 1.0, "search_s": 2.0}
    assert "| 2 | 15 | 12 | 13.5 | 1.0 s | 2.0 s |" in told({"cost": {"2": cost}})
    assert told({}) == ""


def test_a_share_in_8_bits_is_held_against_the_noise():
    noise = {"flips": 0.001, "batch_flips": 0.002, "decode_flips": 0.0, "kl_mean": 3e-5, "floor": 0.002}
    rows = {"noise": noise, "int8|0.5": ROW | {"flips": 0.002, "kl": 1e-4, "parameters": 0.6}}
    assert "| int8 | 60% | 0.20% | 1.0e-04 | yes | no |" in told({"eight": rows})


def test_parts_are_disjoint_and_drawn_by_seed():
    parts = parts_of(20, 1, {"held_out": 8, "search": 6})
    assert len({*parts["held_out"], *parts["search"]}) == 14
    assert parts == parts_of(20, 1, {"held_out": 8, "search": 6}) != parts_of(20, 2, {"held_out": 8, "search": 6})
    with pytest.raises(AssertionError, match="too few for search"):
        parts_of(10, 1, {"held_out": 8, "search": 6})


def test_a_figure_is_measured_once(tmp_path):
    place = tmp_path / "runs" / "figures.json"
    assert Figures(place, fresh=False).once("cost", "2", lambda: 1) == 1
    assert Figures(place, fresh=False).once("cost", "2", lambda: 2) == 1
    assert Figures(place, fresh=True).once("cost", "2", lambda: 2) == 2
