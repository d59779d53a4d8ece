"""`sterna pretrain` by configuration: other architectures, and a model in parts, on two of Ray Train's workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.config import PretrainConfig
from train.plan.shapes import shape_of_width
from train.pretrain import pretrain


def with_model(plan_file: Path, architecture: str, **sizes: int) -> Path:
    """The plan with another model, of at least two layers."""
    table = shape_of_width(64, vocab_size=400, max_length=64, architecture=architecture).table() | sizes  # type: ignore[arg-type]
    quoted = {True: "true", False: "false"}
    lines = [f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {quoted.get(value, value)}" for key, value in table.items()]
    train = plan_file.read_text().split("[train]")[1]
    plan_file.write_text("\n".join(["[model]", *lines, "", "[train]"]) + train)
    return plan_file


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("architecture", ["ssm", "moe", "linear"])
def test_another_architecture_is_planned_trained_exported_and_generates(tmp_path: Path, plan_file: Path, architecture: str):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = pretrain(PretrainConfig(plan=str(with_model(plan_file, architecture)), output=str(tmp_path / "model")))
    losses = made.manifest.figures["loss"]["series"][0]["y"]
    assert losses[-1] < losses[0]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(made.uri), AutoTokenizer.from_pretrained(made.uri)
    prompt = tokenizer("def area", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=3, min_new_tokens=3).shape[1] == prompt["input_ids"].shape[1] + 3


@pytest.mark.usefixtures("ray_session")
@pytest.mark.slow
@pytest.mark.parametrize(
    "layout", [{"pipeline": 2, "zero_stage": 0}, {"sequence": 2, "zero_stage": 2}, {"tensor": 2, "zero_stage": 0}], ids=str
)
def test_a_layout_is_a_setting(tmp_path: Path, plan_file: Path, layout: dict):
    plan = str(with_model(plan_file, "dense", num_heads=4, num_kv_heads=2, head_dim=16))
    one = pretrain(PretrainConfig(plan=plan, output=str(tmp_path / "one"), num_workers=1, save_precision="float32"))
    two = pretrain(PretrainConfig(plan=plan, output=str(tmp_path / "two"), num_workers=2, save_precision="float32", **layout))
    expected, found = (made.manifest.figures["loss"]["series"][0]["y"] for made in (one, two))
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.slow
def test_what_a_layout_cannot_split_is_one_line(tmp_path: Path, plan_file: Path):
    with pytest.raises(ValueError, match="sequence: Mamba2ForCausalLM carries a state") as caught:
        pretrain(PretrainConfig(plan=str(with_model(plan_file, "ssm")), output=str(tmp_path / "model"), sequence=2))
    assert "\n" not in str(caught.value)
