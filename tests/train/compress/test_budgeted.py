"""Budgets end to end on a random tiny model: kept or missed with exit code 3, monotone, resumed, in both formats."""

from __future__ import annotations

import doctest
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sterna
from cluster.artifact import Unmet
from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from train.compress import budgeted
from train.compress.compress import compress
from train.compress.config import CompressConfig
from train.compress.quantize import load_dense
from train.model_folder import load_model

WORDS = [
    "def",
    "add",
    "return",
    "left",
    "right",
    "for",
    "index",
    "in",
    "range",
    "print",
    "value",
    "tern",
    "flies",
    "pole",
    "year",
    "life",
    "every",
    "again",
    "back",
]
CONTRACT = {"fdt_median", "fdt_p10", "flips", "flips_upper", "kl_mean", "kl_p99", "perplexity", "perplexity_base", "noise_floor"}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rng = np.random.default_rng(0)
    file.write_text("".join(json.dumps({"prompt": " ".join(rng.choice(WORDS, 6))}) + "\n" for _ in range(60)))
    return file


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


def config_of(model, output, prompts, work, budget, **given):
    sizes = {"num_prompts": 24, "search_prompts": 24, "calibration_prompts": 8, "completion_tokens": 12}
    engine = EngineConfig(num_threads=1)
    return CompressConfig(
        model=str(model), output=str(output), prompts=str(prompts), work=str(work), budget=budget, engine=engine, **sizes, **given
    )


@pytest.fixture(scope="module")
def loose(tiny_model_dir, prompts, work, tmp_path_factory):
    return compress(config_of(tiny_model_dir, tmp_path_factory.mktemp("out") / "loose", prompts, work, ("flips=0.3",)))


def test_the_contract(loose):
    summary = loose.summary()
    assert summary["pass"] is True
    assert summary["budget"] == {"flips": 0.3}
    assert summary["certificate"].keys() >= CONTRACT
    assert summary["certificate"]["flips_upper"] <= 0.3
    files = sum(file.stat().st_size for file in loose.local().glob("*.safetensors"))
    assert files == summary["bytes"] < summary["bytes_base"]
    report = json.loads((loose.local() / "compression.json").read_text())
    assert {row["option"] for row in report["plan"]} - {"keep"}
    assert all(row["reason"] for row in report["plan"])
    assert report["readers"] == ["sterna", "transformers"]
    assert sum(step["chosen"] for step in report["trail"]) >= 1
    assert "It keeps to the budget flips=0.3." in (loose.local() / "README.md").read_text()
    assert {"chosen", "frontier_flips", "texts"} <= loose.manifest.figures.keys()


def test_transformers_and_our_engine_read_the_same_numbers(loose):
    tokens = list(range(5, 25))
    engine = Engine.load(loose.local(), EngineConfig(num_threads=1, dtype="float32"))
    with torch.no_grad():
        expected = load_model(loose.local(), torch.float32)(torch.tensor([tokens])).logits[0]
    assert torch.allclose(engine.logits(tokens).float(), expected, atol=2e-3)


def test_monotone_budgets_give_monotone_bytes(loose, tiny_model_dir, prompts, work, tmp_path):
    sizes = []
    for bound in (0.06, 0.15, 0.6):
        made = compress(config_of(tiny_model_dir, tmp_path / str(bound), prompts, work, (f"flips={bound}",)))
        assert made.summary()["certificate"]["flips_upper"] <= bound
        sizes.append(made.summary()["bytes"])
    sizes.insert(2, loose.summary()["bytes"])
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 1


def test_two_budgets_are_both_kept(tiny_model_dir, prompts, work, tmp_path, loose):
    bound = loose.summary()["certificate"]["kl_upper"] / 3
    made = compress(config_of(tiny_model_dir, tmp_path / "both", prompts, work, ("flips=0.3", f"kl={bound}"))).summary()
    assert made["certificate"]["kl_upper"] <= bound
    assert made["bytes"] >= loose.summary()["bytes"]


def test_an_impossible_budget_is_exit_code_3_with_the_best_that_was_reached(tiny_model_dir, prompts, tmp_path, capsys):
    given = ["compress", str(tiny_model_dir), "--budget", "flips=0", "--prompts", str(prompts), "--output", str(tmp_path / "out"), "--json"]
    given += ["--num-prompts", "8", "--search-prompts", "8", "--calibration-prompts", "4", "--completion-tokens", "6"]
    for _ in range(2):  # the second run finds it done, and says the same
        assert sterna.main(given) == 3
        shown = capsys.readouterr()
        summary = json.loads(shown.out)
        assert summary["pass"] is False
        assert summary["certificate"]["flips_upper"] > 0
        assert "budget: flips=0 cannot be kept to on these prompts; the best that was reached is flips" in shown.err
    assert "already done" in shown.err


def test_an_interrupted_search_goes_on(tiny_model_dir, prompts, tmp_path, monkeypatch, capsys):
    config = config_of(tiny_model_dir, tmp_path / "out", prompts, "", ("flips=0.1",))
    write, kept = budgeted.Store.write, []

    def interrupted(self, name, key, table):
        write(self, name, key, table)
        if name == "judged" and len(table) == 3:
            kept.append(len(table))
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(budgeted.Store, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compress(config)
    assert not (tmp_path / "out").exists()
    made = compress(config)
    assert "compress: 3 plans were judged before" in capsys.readouterr().err
    assert made.summary()["pass"] is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"], "no work is left behind"


def test_another_budget_begins_with_the_knapsack(tiny_model_dir, prompts, work, tmp_path, loose, monkeypatch):
    def never(*_, **__):
        raise AssertionError("worked out twice")

    for name in ("find.degraded", "find.scores", "choose.moments", "original.make_reference"):
        monkeypatch.setattr(f"train.compress.{name}", never)
    made = compress(config_of(tiny_model_dir, tmp_path / "out", prompts, work, ("flips=0.25",)))
    assert made.summary()["pass"] is True
    assert made.summary()["bytes"] >= loose.summary()["bytes"]


def test_a_loose_budget_leaves_a_block_out(tiny_model_dir, prompts, work, tmp_path, monkeypatch):
    monkeypatch.setattr("train.compress.drops._HOPELESS", float("inf"))
    config = config_of(tiny_model_dir, tmp_path / "out", prompts, work, ("flips=1",), options="int8,drop-block,drop-mlp")
    made = compress(config)
    assert made.summary()["pass"] is True
    report = json.loads((made.local() / "compression.json").read_text())
    gone = {row["name"].split(".mlp")[0].split(".self_attn")[0] for row in report["plan"] if row["option"] == "drop-block"}
    described = json.loads((made.local() / "config.json").read_text())
    assert described["num_hidden_layers"] == load_dense(tiny_model_dir).config.num_hidden_layers - len(gone) == 1
    assert all(row["bytes_after"] == 0 for row in report["plan"] if row["option"] == "drop-block")
    assert "measured alone" in next(row["reason"] for row in report["plan"] if row["option"] == "drop-block")
    tokens = list(range(5, 25))
    with torch.no_grad():
        expected = load_model(made.local(), torch.float32)(torch.tensor([tokens])).logits[0]
    engine = Engine.load(made.local(), EngineConfig(num_threads=1, dtype="float32"))
    assert torch.allclose(engine.logits(tokens).float(), expected, atol=2e-3)


def test_a_cluster_judges_as_one_process_does(ray_session, tiny_model_dir, prompts, tmp_path, loose):
    spread = compress(config_of(tiny_model_dir, tmp_path / "spread", prompts, "", ("flips=0.3",), num_workers=2))
    assert spread.summary()["bytes"] == loose.summary()["bytes"]
    assert spread.summary()["certificate"]["flips"] == loose.summary()["certificate"]["flips"]


def test_dense_weights_are_those_of_the_plan(tiny_model_dir, prompts, work, tmp_path, loose):
    made = compress(config_of(tiny_model_dir, tmp_path / "dense", prompts, work, ("flips=0.3",), export="dense"))
    described = json.loads((made.local() / "config.json").read_text())
    assert "quantization_config" not in described
    dense = load_dense(made.local(), torch.float32)
    packed = load_model(loose.local(), torch.float32)
    for name, weight in dense.named_parameters():
        assert torch.allclose(weight, packed.get_parameter(name), atol=1e-6), name


def test_unmet_is_a_mistake_to_whoever_calls_the_function(tiny_model_dir, prompts, work, tmp_path):
    with pytest.raises(Unmet, match="cannot be kept to") as caught:
        compress(config_of(tiny_model_dir, tmp_path / "out", prompts, work, ("kl=0",)))
    assert caught.value.best.summary()["pass"] is False


@given(st.lists(st.booleans(), max_size=8))
def test_nothing_is_asked_after_the_first_that_fails(answers):
    asked = []
    count = budgeted.settled(range(len(answers)), lambda at: asked.append(at) or answers[at])
    assert all(answers[:count])
    assert count == len(answers) or not answers[count]
    assert len(asked) == min(count + 1, len(answers))


def test_the_worked_example():
    assert doctest.testmod(budgeted).failed == 0
