from __future__ import annotations

from pathlib import Path

import pytest

from train.config import PretrainConfig
from train.pretrain import _expected, _prediction, _read_plan, pretrain


@pytest.mark.usefixtures("ray_session")
def test_a_plan_becomes_a_model_folder_that_transformers_loads(tmp_path: Path, plan_file: Path, plain_losses: list[float], capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = PretrainConfig(plan=str(plan_file), output=str(tmp_path / "model"), save_precision="float32")
    made = pretrain(config)
    figures = made.manifest.metrics
    assert figures["steps"] == 6
    assert figures["predicted_loss"] == 5.5
    assert figures["predicted_loss_error"] == pytest.approx(5.5 / figures["final_loss"] - 1)
    assert "after 6 steps (predicted 5.50: " in made.manifest.headline
    curve = made.manifest.figures["loss"]["series"]
    assert [series["name"] for series in curve] == ["loss", "predicted"]
    assert curve[0]["y"] == pytest.approx(plain_losses, rel=1e-4)
    folder = Path(made.uri)
    assert not [name for name in ("ray", "checkpoints") if (folder / name).exists()]
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("def area", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=3, min_new_tokens=3).shape[1] == prompt["input_ids"].shape[1] + 3
    assert pretrain(config).digest == made.digest
    assert "already done" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 300}, "plan again for these tokens"),
        ({"sequence_length": 16}, "the plan says 16"),
        ({"num_heads": 3}, "does not divide"),
        ({"global_batch": 7}, "cannot be dealt evenly"),
        ({"tokens": ["a", "b"]}, r"tokens: is \['a', 'b'\]; give one folder"),
        ({"value": "'low'"}, r"value in \[predicted.loss\] must be a number"),
        ({"architecture": "'dense'\nfrom = 'runs/base'"}, "from is a model folder and stands alone"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_before_any_work(tmp_path: Path, plan_file: Path, change: dict, message: str):
    (name, value), *_ = change.items()
    lines = [f"{name} = {value}" if line.startswith(f"{name} =") else line for line in plan_file.read_text().splitlines()]
    if name == "num_heads":
        lines = ["num_kv_heads = 2" if line.startswith("num_kv_heads") else line for line in lines]
    plan_file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        pretrain(PretrainConfig(plan=str(plan_file), output=str(tmp_path / "model")))
    assert not (tmp_path / "model.partial").exists()


def test_more_workers_than_there_can_be_are_not_waited_for(tmp_path: Path, plan_file: Path):
    with pytest.raises(ValueError, match="min_workers: is 3, but num_workers is 2; it would wait for ever"):
        pretrain(PretrainConfig(plan=str(plan_file), output=str(tmp_path / "model"), min_workers=3))


def test_a_prediction_is_of_the_plans_own_number_of_steps(plan_file: Path):
    plan, _ = _read_plan(str(plan_file))
    assert _prediction(plan) == {"value": 5.5}
    assert _prediction({}) == _prediction({"predicted": {"loss": {}}}) == {}
    whole = {"value": 3, "low": 2.5, "high": 4.0}
    assert _prediction({"predicted": {"loss": whole}}) == whole
    for wrong in (3, {"loss": "x"}, {"loss": {"value": True}}, {"loss": {"value": 3.0, "low": "2"}}):
        with pytest.raises(ValueError, match="must be a number"):
            _prediction({"predicted": wrong})


def test_what_was_predicted_stands_beside_what_came():
    assert _expected({"value": 4.4, "low": 3.7, "high": 5.2}, 4.0) == "predicted 4.40, 3.70 to 5.20: 10.0 % above"
    assert _expected({"value": 3.9}, 4.0) == "predicted 3.90: 2.5 % below"


def test_missing_inputs_are_named(tmp_path: Path, plan_file: Path):
    output = str(tmp_path / "model")
    with pytest.raises(ValueError, match="no such file"):
        pretrain(PretrainConfig(plan=str(tmp_path / "absent.toml"), output=output))
    with pytest.raises(ValueError, match="sterna plan"):
        pretrain(PretrainConfig(plan=str(tmp_path / "absent"), output=output))
    with pytest.raises(ValueError, match="sterna tokenize"):
        pretrain(PretrainConfig(plan=str(plan_file), tokens=str(tmp_path), output=output))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ValueError, match="no such file"):
        pretrain(PretrainConfig(plan=str(tmp_path / "folder.toml"), output=output))
    plan_file.write_text("[model\n")
    with pytest.raises(ValueError, match="not TOML"):
        pretrain(PretrainConfig(plan=str(plan_file), output=output))
    plan_file.write_text("[trian]\nsteps = 1\n")
    with pytest.raises(ValueError, match="nothing reads trian; its tables are model, train, predicted"):
        pretrain(PretrainConfig(plan=str(plan_file), output=output))
    plan_file.write_text("[train]\nsteps = 1\n")
    with pytest.raises(ValueError, match=r"has no \[model\] table"):
        pretrain(PretrainConfig(plan=str(plan_file), output=output))
