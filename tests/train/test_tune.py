from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from tests.train.tuning.test_methods import sequences
from train.optimize.guard import spike
from train.tune import _build, _export, _recipe, tune
from train.tuning.config import TuneConfig
from train.tuning.data import TuningData


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
    assert made.manifest.headline.startswith("lora: held-out loss")
    tuned = AutoModelForCausalLM.from_pretrained(made.uri)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    assert not torch.equal(logits(tuned), logits(base))
    assert (Path(made.uri) / "tokenizer.json").read_bytes() == (tiny_model_dir / "tokenizer.json").read_bytes()
    assert tune(config).digest == made.digest
    assert "already done" in capsys.readouterr().err


@pytest.mark.usefixtures("ray_session")
def test_preferences_through_the_verb_give_biases_alone(tmp_path: Path, tiny_model_dir: Path):
    from train.tuning.folder import with_adapter

    lines = [json.dumps({"prompt": f"add {n}", "chosen": f"return {n}", "rejected": f"{n} is a bird"}) for n in range(40)]
    (tmp_path / "pairs.jsonl").write_text("\n".join([*lines, '{"chosen": "a"}']))
    made = tune(TuneConfig(
        model=str(tiny_model_dir), data=(str(tmp_path / "pairs.jsonl"),), output=str(tmp_path / "out"), method="bitfit", merge=False,
        objective="preferences", steps=12, global_batch=4, micro_batch=2, learning_rate=3e-2, precision="float32", held_out=0.2,
        num_workers=1,
    ))  # fmt: skip
    figures = made.manifest.metrics
    assert figures["loss_before"] == pytest.approx(math.log(2), rel=1e-4)  # the reference is the model itself
    assert figures["loss_after"] < figures["loss_before"] - 0.1
    assert made.manifest.counts["dropped.no_pair"] == 1
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    before = logits(base)
    assert not torch.equal(logits(with_adapter(base, Path(made.uri))), before)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_adaptive_ranks_are_pruned_alike_on_two_workers(tmp_path: Path, tiny_model_dir: Path, pairs_file: Path):
    made = tune(TuneConfig(
        model=str(tiny_model_dir), data=(str(pairs_file),), output=str(tmp_path / "out"), method="adalora", merge=False, rank=2,
        steps=10, global_batch=4, micro_batch=2, max_length=64, precision="float32", held_out=0.1, seed=5,
    ))  # fmt: skip
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    ranks = [config["rank_pattern"].get(name, config["r"]) for name in config["target_modules"]]
    assert sum(ranks) == 2 * 14  # seven matrices in each of two layers, two ranks each on average
    assert Engine.load(tiny_model_dir, EngineConfig(num_blocks=8, adapters=(f"mine={made.uri}",))).adapters.names == ("mine",)
    assert made.manifest.metrics["loss_after"] < made.manifest.metrics["loss_before"]


@pytest.mark.parametrize(("method", "merge"), [("full", None), ("lora", True), ("lora", False), ("prompt", None)])
def test_the_written_result_equals_the_trained_model(tmp_path: Path, tiny_model_dir: Path, method: str, merge: bool | None):
    from transformers import AutoModelForCausalLM

    from train.tuning.folder import with_adapter

    config = TuneConfig(model=str(tiny_model_dir), data=("unused",), output="unused", rank=4, method=method, merge=merge)
    trained = _build(config, 1)
    torch.manual_seed(3)
    weights = {name: p.detach() + torch.randn_like(p) * 0.1 for name, p in trained.named_parameters() if p.requires_grad}
    trained.load_state_dict(weights, strict=False)
    _export(config, 1, str(tmp_path), trained, weights)
    if config.merged:
        written = AutoModelForCausalLM.from_pretrained(tmp_path)
    else:
        assert (tmp_path / "adapter_config.json").exists()
        written = with_adapter(AutoModelForCausalLM.from_pretrained(tiny_model_dir), tmp_path)
    torch.testing.assert_close(logits(written), logits(trained), rtol=1e-4, atol=1e-4)


def test_a_hard_batch_among_well_learnt_ones_is_no_spike(tiny_model_dir: Path):
    """Sixteen pairs a step, of which one is ordered badly now and then: the guard of pretraining would undo and at last end such a run."""
    config = TuneConfig(model=str(tiny_model_dir), data=("unused",), output="unused", objective="preferences", steps=9)
    recipe = _recipe(config, TuningData(sequences(), sequences(), {}), tiny_model_dir)
    recent = [0.01, 0.012, 0.008, 0.011] * 8
    assert spike(recent, 0.3, 8.0) is not None
    assert spike(recent, 0.3, recipe.guard) is None
    assert spike(recent, math.nan, recipe.guard) == "loss nan"


def test_mistakes_are_one_line_before_any_work(tmp_path: Path, tiny_model_dir: Path, pairs_file: Path, models_dir: Path):
    def mistaken(**changes) -> TuneConfig:
        return TuneConfig(**{"model": str(tiny_model_dir), "data": (str(pairs_file),), "output": str(tmp_path / "out")} | changes)

    long = [{"role": "user", "content": "more " * 20}, {"role": "assistant", "content": "text"}]
    (tmp_path / "long.jsonl").write_text("\n".join(json.dumps({"messages": [*long, *long[:n]]}) for n in range(2)))
    refusing = shutil.copytree(tiny_model_dir, tmp_path / "refusing")
    settings = json.loads((refusing / "tokenizer_config.json").read_text())
    (refusing / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "{{ raise_exception('no') }}"}))
    for config, message in [
        (mistaken(model=str(tmp_path / "absent")), "no such model folder"),
        (mistaken(model=str(models_dir / "tiny-code")), "no chat template"),
        (mistaken(data=(str(tmp_path / "absent.jsonl"),)), "no such file"),
        (mistaken(data=(str(tmp_path),)), "sterna curate"),
        (mistaken(max_length=4096), "exceed the model's context"),
        (mistaken(data=(str(tmp_path / "long.jsonl"),), max_length=16), "no pair fits into 16 tokens"),
        (mistaken(global_batch=3), "cannot be dealt evenly"),
        (mistaken(targets=("nonsense",)), "targets: nonsense"),
        (mistaken(method="prompt", max_length=500), "500 tokens exceed the model's context of 512 less 20 virtual tokens"),
        (mistaken(method="prompt", virtual_tokens=512), "virtual_tokens: 512 leave no room"),
        (mistaken(steps=0), "steps: is 0; must be at least 1"),
        (mistaken(model=str(refusing)), "57 template: the chat template of .* refuses those"),
        (mistaken(method="full", targets=("q_proj",)), "targets: full adapts no modules"),
        (mistaken(objective="preferences"), "no line can be used .* each needs `chosen` and `rejected`"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            tune(config)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
