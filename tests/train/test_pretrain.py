from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch

from cluster.artifact import open_artifact
from train.config import PretrainConfig, Recipe
from train.corpus import Sequences
from train.pretrain import _build, _read_plan, pretrain
from train.workers import Job, train_on_workers


def plain_losses(plan_file: Path, tokens_dir: Path) -> list[float]:
    """What one process of plain torch makes of the plan."""
    from train.loop import PlainStepper, State, run

    plan, _ = _read_plan(str(plan_file))
    recipe = Recipe(**{k: v for k, v in plan["train"].items() if k != "tokens"} | {"num_workers": 1})
    model = _build(plan["model"], open_artifact(str(tokens_dir), made_by="tokenize"), recipe.seed)
    return [r.loss for r in run(PlainStepper(model, recipe), Sequences.open(tokens_dir), recipe, state=State()).records]


class DiesOnce(Sequences):
    """Sequences whose first reader, once it has read enough, is gone without a word."""

    marker: Path

    def batch(self, indices):
        self.reads = getattr(self, "reads", 0) + 1
        if self.reads > 9 and not self.marker.exists():  # two micro-batches a step and worker: in the fifth step
            self.marker.touch()
            os._exit(1)
        return super().batch(indices)


def dying_source(tokens_dir: Path, marker: Path) -> Sequences:
    source = DiesOnce.open(tokens_dir)
    source.marker = marker
    return source


def keep(folder: Path, model, weights) -> None:
    torch.save(weights, folder / "weights.pt")


@pytest.mark.usefixtures("ray_session")
def test_a_plan_becomes_a_model_folder_that_transformers_loads(tmp_path: Path, plan_file: Path, tokens_dir: Path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = PretrainConfig(plan=str(plan_file), output=str(tmp_path / "model"), save_precision="float32")
    made = pretrain(config)
    figures = made.manifest.metrics
    assert figures["steps"] == 6
    assert figures["predicted_loss"] == 5.5
    assert "after 6 steps (predicted 5.50)" in made.manifest.headline
    curve = made.manifest.figures["loss"]["series"]
    assert [series["name"] for series in curve] == ["loss", "predicted"]
    assert curve[0]["y"] == pytest.approx(plain_losses(plan_file, tokens_dir), rel=1e-4)
    folder = Path(made.uri)
    assert not [name for name in ("ray", "checkpoints") if (folder / name).exists()]
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("def area", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=3, min_new_tokens=3).shape[1] == prompt["input_ids"].shape[1] + 3
    assert pretrain(config).digest == made.digest
    assert "already done" in capsys.readouterr().err


@pytest.mark.usefixtures("ray_session")
def test_a_worker_that_dies_costs_no_more_than_the_steps_since_the_checkpoint(tmp_path: Path, plan_file: Path, tokens_dir: Path):
    plan, _ = _read_plan(str(plan_file))
    recipe = Recipe(**{k: v for k, v in plan["train"].items() if k != "tokens"})
    job = Job(
        label="test",
        recipe=recipe,
        folder=str(tmp_path),
        build=partial(_build, plan["model"], open_artifact(str(tokens_dir), made_by="tokenize"), recipe.seed),
        source=partial(dying_source, tokens_dir, tmp_path / "died"),
        export=partial(keep, tmp_path),
        max_failures=1,
    )
    outcome = train_on_workers(job)
    assert (tmp_path / "died").exists()
    assert outcome.resumed_at == 3
    assert [r.step for r in outcome.state.records] == [1, 2, 3, 4, 5, 6]
    assert [r.loss for r in outcome.state.records] == pytest.approx(plain_losses(plan_file, tokens_dir), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 300}, "plan again for these tokens"),
        ({"sequence_length": 16}, "the plan says 16"),
        ({"num_heads": 3}, "does not divide"),
        ({"global_batch": 7}, "cannot be dealt evenly"),
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


def test_missing_inputs_are_named(tmp_path: Path, plan_file: Path):
    output = str(tmp_path / "model")
    with pytest.raises(ValueError, match="no such file"):
        pretrain(PretrainConfig(plan=str(tmp_path / "absent.toml"), output=output))
    with pytest.raises(ValueError, match="sterna plan"):
        pretrain(PretrainConfig(plan=str(tmp_path / "absent"), output=output))
    with pytest.raises(ValueError, match="sterna tokenize"):
        pretrain(PretrainConfig(plan=str(plan_file), tokens=str(tmp_path), output=output))
    plan_file.write_text("[model\n")
    with pytest.raises(ValueError, match="not TOML"):
        pretrain(PretrainConfig(plan=str(plan_file), output=output))
    plan_file.write_text("[train]\nsteps = 1\n")
    with pytest.raises(ValueError, match=r"has no \[model\] table"):
        pretrain(PretrainConfig(plan=str(plan_file), output=output))
