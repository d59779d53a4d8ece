"""`sterna plan run` on a small tokens folder: what it writes is what pretrain reads; what is wrong is one line."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

import sterna
from cluster.artifact import publish
from train.plan import measure as measure_module
from train.plan.config import PlanConfig
from train.plan.document import TABLES
from train.plan.law_file import PREDICTOR
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
    assert set(plan) <= set(TABLES)
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
    with pytest.raises(ValueError, match=r"budget: 6 seconds is too little; minutes="):
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


def test_a_manifest_that_was_changed_by_hand(tmp_path, tiny_model_dir):
    tokens = write_tokens(tmp_path / "tokens", tiny_model_dir, vocab_size="many")
    with pytest.raises(ValueError, match=r"its manifest was changed by hand .*; run `sterna tokenize` again"):
        plan_run(config_of(tokens, tmp_path))


def plan_of(made) -> dict:
    return tomllib.loads((Path(made.uri) / "plan.toml").read_text())


def test_rented_machines_need_no_measuring(tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(measure_module, "measure", None)
    made = plan_run(config_of(tokens, tmp_path, machines="8xH100", budget="dollars=30", max_params=3e6, market="spot"))
    plan = plan_of(made)
    assert "measured" not in plan
    assert plan["machines"]["speed"] == "catalogue, not measured (8xH100)"
    assert "not measured" in made.manifest.headline
    assert plan["predicted"]["dollars_spot"]["value"] <= 30 * 1.05
    assert plan["machines"]["on_demand_per_hour"] == pytest.approx(55.04)
    assert Recipe(**{k: v for k, v in plan["train"].items() if k != "tokens"}).num_workers == 8


def test_ones_own_price_and_law(tmp_path, tiny_model_dir):
    tokens = write_tokens(tmp_path / "tokens", tiny_model_dir, num_sequences=20_000)  # on little text a fast machine leaves money over
    theta = [*np.log([482.0, 2085.0, 1.8]).tolist(), 0.3478, 0.3658]
    document = {"form": "chinchilla", "theta": theta, "thetas": [theta] * 3, "residuals": [0.01, -0.01], "stretch": 1.0, "seed": 0,
                "embeddings": "excluded", "largest": [1e5, 1e10]}  # fmt: skip
    with publish(str(tmp_path / "fit"), stage="fit", inputs={}, config=PlanConfig(tokens="", output="", budget="hours=1")) as draft:
        (draft.dir / PREDICTOR).write_text(json.dumps(document))
    made = plan_run(config_of(tokens, tmp_path, law=str(tmp_path / "fit"), price_per_hour=2.0, budget="dollars=0.05", seed=3))
    plan = plan_of(made)
    assert plan["law"]["source"] == str(tmp_path / "fit")
    assert plan["law"]["N_includes_embeddings"] is False
    assert plan["predicted"]["dollars_on_demand"]["value"] == pytest.approx(0.05, rel=0.2)
    assert plan["machines"]["prices"] == "yours"


def test_serving_is_told(tokens, tmp_path):
    made = plan_run(config_of(tokens, tmp_path, machines="1xL4", budget="flops=3e14", serve_tokens=1e12, max_params=3e7))
    serving = plan_of(made)["serving"]
    assert set(plan_of(made)) <= set(TABLES)
    assert serving["saved_share"] >= 0
    assert serving["serving_flops"] > 0


MISTAKES = [
    (["--budget", "hours=1e9"], "are 114,068 years; at most hours=87660"),
    (["--budget", "flops=1e40"], "times what 60 passes over 12,800 tokens can use (flops="),
    (["--budget", "dollars=1e12"], "times what 60 passes over"),
    (["--budget", "flops=10"], "10 FLOPs is too little; flops="),
    (["--budget", "flops=0"], "must be above 0 and finite"),
    (["--budget", "hours=-3"], "must be above 0 and finite"),
    (["--budget", "hours=nan"], "must be above 0 and finite"),
    (["--budget", "hours=1", "--machines", "9xH1000"], "did you mean H100?"),
    (["--budget", "hours=1 dollars=5"], "names several limits, which may contradict each other; give one"),
    (["--budget", "sheep=3"], "is not understood; say for instance hours=2"),
    (["--budget", "dollars=0.001"], "0.001 dollars is too little; dollars="),
    (["--budget", "dollars=5", "--machines", "local"], "nobody has said what this machine costs; give --price-per-hour"),
    (["--budget", "hours=1", "--machines", "0xH100"], "give at least 1"),
    (["--budget", "hours=1", "--num-workers", "9"], "num_workers: 9 workers need as many accelerators"),
    (["--budget", "hours=1", "--num-workers", "0"], "num_workers: is 0; must be at least 1"),
    (["--budget", "hours=1", "--memory-bytes", "1e13"], "GB more than a H100 has (80 GB)"),
    (["--budget", "hours=1", "--memory-bytes", "1e9"], "memory_bytes: 0.93 GiB per worker cannot hold the smallest model"),
    (["--budget", "hours=1", "--memory-bytes", "-5"], "memory_bytes: is -5; must be above 0"),
    (["--budget", "hours=1", "--max-params", "10"], "max_params: 10 are too few"),
    (["--budget", "hours=1", "--max-params", "-1"], "max_params: is -1; must be above 0"),
    (["--budget", "hours=1", "--max-params", "inf"], "must be above 0 and finite"),
    (["--budget", "hours=1", "--serve-tokens", "-1"], "serve_tokens: is -1; must be finite and not negative"),
    (["--budget", "hours=1", "--serve-tokens", "1e30"], "more than all machines of the world serve"),
    (["--budget", "hours=1", "--machines", "1000xH100"], "400 sequences are too few for 1000 workers"),
    (["--budget", "hours=1", "--law", "nowhere"], "nowhere: no such folder; `sterna plan fit or plan sweep` makes it"),
    (["--budget", "hours=1", "--catalogue", "nowhere.toml"], "nowhere.toml: no such file"),
    (["--budget", "hours=1", "--price-per-hour", "0"], "price_per_hour: is 0; must be above 0"),
    (["--budget", "hours=1", "--failure-hours", "0"], "failure_hours: is 0; must be above 0"),
    (["--budget", "hours=1", "--market", "black"], "market"),
    (["--budget", "seconds=20"], "start-up alone takes"),
]


@pytest.mark.parametrize(("arguments", "said"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_infeasible_contradictory_or_absurd_is_one_line(tokens, tmp_path, arguments, said, capsys, monkeypatch):
    monkeypatch.setattr(measure_module, "measure", None)
    machines = [] if "--machines" in arguments else ["--machines", "8xH100"]
    assert sterna.main(["plan", "run", "--tokens", tokens, "--output", str(tmp_path / "plan"), *machines, *arguments]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "plan").exists()
