from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from train.config import TuneConfig
from train.tune import _build, _export, tune


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    turns = [[{"role": "user", "content": f"add {n}"}, {"role": "assistant", "content": f"return {n}"}] for n in range(60)]
    path.write_text("\n".join([*(json.dumps({"messages": pair}) for pair in turns), "not json"]))
    return path


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[4, 9, 17, 30]])).logits.float()


@pytest.mark.usefixtures("ray_session")
def test_tuning_lowers_the_held_out_loss_of_the_answers(tmp_path: Path, tiny_model_dir: Path, pairs_file: Path, capsys):
    from transformers import AutoModelForCausalLM

    config = TuneConfig(
        model=os.path.relpath(tiny_model_dir), data=(os.path.relpath(pairs_file),), output=os.path.relpath(tmp_path / "tuned"),
        rank=4, steps=12, global_batch=4,
        micro_batch=2, max_length=64, learning_rate=2e-2, precision="float32", held_out=0.1,
    )  # fmt: skip
    made = tune(config)
    figures, counts = made.manifest.metrics, made.manifest.counts
    assert figures["loss_after"] < figures["loss_before"] - 0.5
    assert (
        counts["pairs_in"] == 61 == counts["pairs_trained"] + counts["pairs_held_out"] + counts["dropped.not_json"] + counts["pairs_unused"]
    )
    assert "held-out loss" in made.manifest.headline
    tuned = AutoModelForCausalLM.from_pretrained(made.uri)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    assert not torch.equal(logits(tuned), logits(base))
    assert (Path(made.uri) / "tokenizer.json").read_bytes() == (tiny_model_dir / "tokenizer.json").read_bytes()
    assert tune(config).digest == made.digest
    assert "already done" in capsys.readouterr().err


@pytest.mark.parametrize("merge", [True, False])
def test_the_written_result_equals_the_trained_model(tmp_path: Path, tiny_model_dir: Path, merge: bool):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    config = TuneConfig(model=str(tiny_model_dir), data=("unused",), output="unused", rank=4, merge=merge)
    trained = _build(config)
    assert torch.equal(logits(trained), logits(AutoModelForCausalLM.from_pretrained(tiny_model_dir)))  # a fresh update does nothing
    torch.manual_seed(3)
    weights = {name: torch.randn_like(p) * 0.1 for name, p in trained.named_parameters() if p.requires_grad}
    trained.load_state_dict(weights, strict=False)
    _export(config, str(tmp_path), trained, weights)
    if merge:
        written = AutoModelForCausalLM.from_pretrained(tmp_path)
    else:
        assert (tmp_path / "adapter_config.json").exists()
        written = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), tmp_path)
    torch.testing.assert_close(logits(written), logits(trained), rtol=1e-4, atol=1e-4)


def test_mistakes_are_one_line_before_any_work(tmp_path: Path, tiny_model_dir: Path, pairs_file: Path, models_dir: Path):
    def mistaken(**changes) -> TuneConfig:
        return TuneConfig(**{"model": str(tiny_model_dir), "data": (str(pairs_file),), "output": str(tmp_path / "out")} | changes)

    long = [{"role": "user", "content": "more " * 20}, {"role": "assistant", "content": "text"}]
    (tmp_path / "long.jsonl").write_text("\n".join(json.dumps({"messages": [*long, *long[:n]]}) for n in range(2)))
    for config, message in [
        (mistaken(model=str(tmp_path / "absent")), "no such model folder"),
        (mistaken(model=str(models_dir / "tiny-code")), "no chat template"),
        (mistaken(data=(str(tmp_path / "absent.jsonl"),)), "no such file"),
        (mistaken(data=(str(tmp_path),)), "sterna curate"),
        (mistaken(max_length=4096), "exceed the model's context"),
        (mistaken(data=(str(tmp_path / "long.jsonl"),), max_length=16), "no pair fits into 16 tokens"),
        (mistaken(global_batch=3), "cannot be dealt evenly"),
        (mistaken(targets=("nonsense",)), "targets: nonsense"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            tune(config)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
