"""`sterna plan run` on a small tokens folder: what it writes is what pretrain reads; what is wrong is one line."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from cluster.artifact import publish
from train.plan import measure as measure_module
from train.plan.config import PlanConfig
from train.plan.run import plan_run
from train.plan.shapes import ModelShape
from train.recipe import Recipe

LENGTH, VOCAB = 32, 400


def write_tokens(output: Path, tokenizer: Path, *, num_sequences: int = 400, **metrics) -> str:
    """A tokens folder like tokenize's, of random ids."""
    with publish(str(output), stage="tokenize", inputs={}, config=PlanConfig(tokens="", output="", budget="hours=1")) as draft:
        (draft.dir / "shards").mkdir()
        (draft.dir / "tokenizer").mkdir()
        ids = np.random.default_rng(0).integers(4, VOCAB, (num_sequences, LENGTH), dtype=np.uint16)
        np.save(draft.dir / "shards" / "00000.tokens.npy", ids)
        np.save(draft.dir / "shards" / "00000.segments.npy", np.ones_like(ids))
        (draft.dir / "tokenizer" / "tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
        found = {
            "num_sequences": num_sequences,
            "sequence_length": LENGTH,
            "vocab_size": VOCAB,
            "bytes_per_token": 3.0,
            "padding_share": 0.0,
        }
        draft.metrics = {name: value for name, value in (found | metrics).items() if value is not None}
    return str(output)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(measure_module, "_TOKENS", 4 * LENGTH)
    real = measure_module.measure
    monkeypatch.setattr(measure_module, "measure", lambda *args, **options: real(*args, **options, seconds=0.05))


@pytest.fixture
def tokens(tmp_path, tiny_model_dir) -> str:
    return write_tokens(tmp_path / "tokens", tiny_model_dir)


def config_of(tokens: str, tmp_path: Path, **changes) -> PlanConfig:
    return PlanConfig(**({"tokens": tokens, "output": str(tmp_path / "plan"), "budget": "minutes=2", "max_params": 1_500_000} | changes))


def test_the_plan_is_what_pretrain_reads(tokens, tmp_path):
    made = plan_run(config_of(tokens, tmp_path, seed=5))
    plan = tomllib.loads((Path(made.uri) / "plan.toml").read_text())
    shape = ModelShape.from_table(plan["model"])
    assert shape.vocab_size == VOCAB
    assert shape.num_parameters <= 1_500_000
    assert plan["train"].pop("tokens") == tokens
    recipe = Recipe(**plan["train"])
    assert (recipe.sequence_length, recipe.num_workers, recipe.seed) == (LENGTH, 2, 5)
    assert set(plan["predicted"]) == {"loss", "hours", "bytes_per_device", "tokens", "flops"}
    for interval in plan["predicted"].values():
        assert 0 < interval["low"] <= interval["value"] <= interval["high"]
    assert plan["predicted"]["hours"]["value"] <= 2 / 60 * 1.02
    assert plan["measured"]["samples"]
    assert all(sample["flops_per_second"] > 1e6 for sample in plan["measured"]["samples"])
    assert made.manifest.stage == "plan"
    assert {figure["kind"] for figure in made.manifest.figures.values()} == {"lines", "table"}
    assert "predicted" in made.manifest.headline


def test_a_finished_plan_is_not_made_again(tokens, tmp_path, capsys, monkeypatch):
    first = plan_run(config_of(tokens, tmp_path))
    monkeypatch.setattr(measure_module, "measure", None)  # a second measurement would fail
    assert plan_run(config_of(tokens, tmp_path)) == first
    assert "already done" in capsys.readouterr().err


def test_a_refused_budget_leaves_no_plan(tokens, tmp_path):
    with pytest.raises(ValueError, match=r"budget: 0.1 minutes is too little; minutes="):
        plan_run(config_of(tokens, tmp_path, budget="minutes=0.1"))
    assert not (tmp_path / "plan").exists()


def test_a_refused_size_says_so_before_anything_is_measured(tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(measure_module, "measure", None)
    with pytest.raises(ValueError, match="max_params"):
        plan_run(config_of(tokens, tmp_path, max_params=10))


def test_memory_is_refused(tokens, tmp_path):
    with pytest.raises(ValueError, match=r"memory_bytes: 0\.00 GiB per worker"):
        plan_run(config_of(tokens, tmp_path, memory_bytes=1_000_000))


def test_no_tokens_folder(tmp_path):
    with pytest.raises(ValueError, match="no such folder; `sterna tokenize` makes it"):
        plan_run(config_of(str(tmp_path / "nothing"), tmp_path))


def test_a_manifest_that_lacks_a_metric(tmp_path, tiny_model_dir):
    tokens = write_tokens(tmp_path / "tokens", tiny_model_dir, vocab_size=None)
    with pytest.raises(ValueError, match="its manifest has no 'vocab_size'"):
        plan_run(config_of(tokens, tmp_path))
