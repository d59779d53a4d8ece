"""A plan's structure on another model, and what serving it is worth."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.compression_served import depth, energy_files, like, main


def layers(count: int) -> list[str]:
    return [f"model.layers.{i}.mlp.up_proj" for i in range(count)]


@given(st.lists(st.sampled_from(["keep", "int8", "int4"]), min_size=1, max_size=6), st.integers(1, 12))
def test_a_plan_keeps_its_order_and_its_shares_on_another_depth(chosen, times):
    plan = list(zip(layers(len(chosen)), chosen, strict=True))
    found = like(plan, layers(len(chosen) * times))
    assert list(found.values()) == [one for one in chosen for _ in range(times)]


def test_a_component_that_the_plan_lacks():
    with pytest.raises(ValueError, match=r"model\.layers\.0\.moe\.gate: the plan has no model\.layers\.moe\.gate at that depth"):
        like([("model.layers.0.mlp.up_proj", "int8")], ["model.layers.0.moe.gate"])


def test_depth():
    assert depth("model.layers.12.self_attn.q_proj") == ("model.layers.self_attn.q_proj", 12)
    assert depth("lm_head") == ("lm_head", None)


def test_energy_is_read_only_where_it_is_told(tmp_path):
    assert energy_files(tmp_path) == []
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("17")
    assert [int(file.read_text()) for file in energy_files(tmp_path)] == [17]


def test_served_beside_bfloat16(tmp_path, tiny_model_dir, capsys):
    import torch
    from transformers import AutoModelForCausalLM

    from train.compress.calibrate import matrices

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16)
    plain, plan = tmp_path / "plain", tmp_path / "plan"
    model.save_pretrained(plain)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (plain / file).write_bytes((tiny_model_dir / file).read_bytes())
    plan.mkdir()
    rows = [{"name": matrix.name, "option": "int8" if matrix.role != "linear" else "int4"} for matrix in matrices(model)]
    (plan / "compression.json").write_text(json.dumps({"plan": rows}))
    output = tmp_path / "figures.json"
    made = ["--made", str(tmp_path / "made"), "--output", str(output)]
    assert main([str(plan), "--shapes", str(plain), "--rounds", "2", "--batches", "1", "2", "--threads", "1", *made]) == 0
    told = capsys.readouterr().out
    assert "tokens/s between tokens, batch 2" in told
    figures = json.loads(output.read_text())[str(plain)]
    assert figures["plan"]["bytes"] < 0.6 * figures["bf16"]["bytes"]
    assert all(len(figures[name]["decode"][batch]) == 2 for name in ("bf16", "plan") for batch in "12")
    assert figures["plan"]["resident"] > 50e6


def test_a_folder_that_is_no_plan(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "has no compression.json" in capsys.readouterr().err
