"""The stage: a folder that the engine runs, a certificate that adds up, mistakes in one line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.request import Sampling
from train.compress.compress import compress
from train.compress.config import CompressConfig
from train.compress.divergence import divergent, first_divergent, judge, make_reference
from train.compress.quantize import linear_layers, load_dense, round_to_nearest

ONE = EngineConfig(num_threads=1)
PROMPTS = ["def add(left, right):", "The tern flies", "for index in range(10):", "return left", "every year of its life"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return file


def config_of(model, output, prompts, **given):
    return CompressConfig(model=str(model), output=str(output), prompts=str(prompts), completion_tokens=12, engine=ONE, **given)


@pytest.fixture(scope="module")
def compressed(tiny_model_dir, prompts, tmp_path_factory):
    return compress(config_of(tiny_model_dir, tmp_path_factory.mktemp("out") / "int8", prompts))


def test_the_certificate_adds_up(compressed):
    certificate = compressed.manifest.metrics["certificate"]
    contract = {"fdt_median", "fdt_p10", "flips", "flips_upper", "kl_mean", "kl_p99", "perplexity", "perplexity_base", "noise_floor"}
    assert contract <= certificate.keys()
    assert certificate["num_prompts"] == len(PROMPTS)
    assert 0 <= certificate["flips_beyond_noise"] <= certificate["flips"] <= certificate["flips_upper"] <= 1
    assert 0 < certificate["kl_mean"] <= certificate["kl_p99"]
    assert compressed.manifest.metrics["bytes"] < 0.7 * compressed.manifest.metrics["bytes_base"]
    assert compressed.manifest.counts["matrices"] == compressed.manifest.counts["compressed"] + compressed.manifest.counts["kept"]
    assert compressed.manifest.headline.startswith("int8: 0.")
    assert {"divergence", "kl", "survival", "bytes", "chosen", "texts"} == compressed.manifest.figures.keys()
    assert {"bytes", "bytes_base", "budget", "certificate", "pass"} <= compressed.summary().keys()
    assert compressed.summary()["pass"] is None, "no budget was given"


def test_the_report_for_people_lists_every_matrix(compressed):
    report = json.loads((compressed.local() / "compression.json").read_text())
    assert len(report["plan"]) == compressed.manifest.counts["matrices"]
    assert report["certificate"] == compressed.manifest.metrics["certificate"]
    assert sum(row["bytes_after"] for row in report["plan"]) < report["bytes"]
    assert "tiny-llama" in (compressed.local() / "README.md").read_text().splitlines()[4]
    assert not (compressed.local() / "work").exists(), "what only this run needed is gone"


def test_our_engine_reads_the_folder_as_the_fake_quantised_model(compressed, tiny_model_dir):
    reference = load_dense(tiny_model_dir, torch.float32)
    for name, layer in linear_layers(reference).items():
        if name != "lm_head":
            q, scale = round_to_nearest(layer.weight, torch.float32)
            layer.weight.data = q.float() * scale
    engine = Engine.load(compressed.local(), EngineConfig(num_threads=1, dtype="float32"))
    tokens = engine.tokenizer.encode(PROMPTS[0])
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).logits[0]
    assert torch.allclose(engine.logits(tokens).float(), expected, atol=1e-3)


def test_a_second_run_does_nothing(compressed, capsys):
    config = compressed.manifest.config
    again = compress(config_of(config["model"], compressed.uri, config["prompts"]))
    assert again.digest == compressed.digest
    assert "already done" in capsys.readouterr().err


def test_the_result_is_not_compressed_again(compressed, prompts, tmp_path):
    with pytest.raises(ValueError, match="quantised already"):
        compress(config_of(compressed.uri, tmp_path / "twice", prompts))
    assert not (tmp_path / "twice").exists()


@pytest.mark.parametrize(("name", "place"), [("output", "."), ("output", "runs/small"), ("work", "work")])
def test_nothing_is_written_into_the_model(tiny_model_dir, prompts, tmp_path, name, place):
    before = sorted(tiny_model_dir.rglob("*"))
    places = {"output": str(tmp_path / "out"), name: str(tiny_model_dir / place)}
    with pytest.raises(ValueError, match=f"{name}: .* lies in the folder of the model"):
        compress(CompressConfig(model=str(tiny_model_dir), prompts=str(prompts), completion_tokens=12, engine=ONE, **places))
    assert sorted(tiny_model_dir.rglob("*")) == before


def test_unusable_prompts_are_found_before_anything_is_written(tiny_model_dir, tmp_path):
    (tmp_path / "p.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="usable prompt"):
        compress(config_of(tiny_model_dir, tmp_path / "out", tmp_path / "p.jsonl"))
    assert [file.name for file in tmp_path.iterdir()] == ["p.jsonl"]


def test_a_model_folder_without_tokenizer_is_one_line(tiny_model_dir, prompts, tmp_path):
    shutil.copytree(tiny_model_dir, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(ValueError, match="no tokenizer"):
        compress(config_of(tmp_path / "bare", tmp_path / "out", prompts))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("num_prompts", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_teacher_forced_equals_free_running_in_our_engine(tiny_model_dir, compressed, num_prompts):
    """The theorem of divergence.py through the engine's own decoding, in float64; and a model does not diverge from itself."""
    greedy = Sampling(max_tokens=16, temperature=0.0, ignore_eos=True)
    exact = EngineConfig(num_threads=1, dtype="float64")
    base, candidate = Engine.load(tiny_model_dir, exact), Engine.load(compressed.local(), exact)
    prompts = np.random.default_rng(0).integers(4, 400, (num_prompts, 5)).tolist()
    own = base.generate(prompts, greedy)
    reference = make_reference(base, prompts, [completion.tokens for completion in own])
    free = candidate.generate(prompts, greedy)
    found = []
    for completion, trace, other in zip(own, judge(candidate, reference), free, strict=True):
        found.append(first_divergent(divergent(completion.tokens, trace.likeliest)))
        assert found[-1] == first_divergent(divergent(completion.tokens, other.tokens))
    for completion, itself in zip(own, judge(base, reference), strict=True):
        assert first_divergent(divergent(completion.tokens, itself.likeliest)) == (len(completion.tokens), True)
        assert itself.kl.max() == 0
    assert any(not censored for _, censored in found), "int8 is to diverge somewhere here"
