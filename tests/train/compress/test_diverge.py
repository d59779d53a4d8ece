"""Two models side by side: one and the same, one and its compression, and two that cannot be compared."""

from __future__ import annotations

import json
import shutil

import pytest

import sterna
from serve.engine.config import EngineConfig
from tests.conftest import write_tiny_tokenizer
from train.compress.compress import compress
from train.compress.config import CompressConfig, DivergeConfig
from train.compress.diverge import diverge

ONE = EngineConfig(num_threads=1)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = ["def add(left, right):", "The tern flies", "for index in range(10):", "return left", "every year of its life"]
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in rows))
    return file


def config_of(base, other, prompts):
    return DivergeConfig(models=(str(base), str(other)), prompts=str(prompts), completion_tokens=12, engine=ONE)


def test_a_model_does_not_diverge_from_itself(tiny_model_dir, prompts):
    found = diverge(config_of(tiny_model_dir, tiny_model_dir, prompts))
    assert found.certificate["flips"] == found.certificate["kl_mean"] == found.certificate["diverged"] == 0
    assert found.certificate["fdt_median"] == found.certificate["fdt_p10"] == found.certificate["longest"] == 12
    assert found.certificate["perplexity"] == found.certificate["perplexity_base"]
    assert "tokens that differ (SDT)" in str(found)


def test_it_finds_what_the_certificate_found(tiny_model_dir, prompts, tmp_path):
    made = compress(
        CompressConfig(model=str(tiny_model_dir), output=str(tmp_path / "out"), prompts=str(prompts), completion_tokens=12, engine=ONE)
    )
    found = diverge(config_of(tiny_model_dir, made.uri, prompts)).certificate
    certified = made.manifest.metrics["certificate"]
    for name in ("flips", "flips_upper", "kl_mean", "kl_upper", "fdt_median", "perplexity", "noise_floor"):
        assert found[name] == pytest.approx(certified[name], rel=1e-6), name
    assert found["kl_mean"] > 0


def test_models_of_other_tokens_are_refused_in_one_line(tiny_model_dir, prompts, tmp_path, capsys):
    shutil.copytree(tiny_model_dir, tmp_path / "other")
    write_tiny_tokenizer(tmp_path / "other", vocab_size=300)
    assert sterna.main(["diverge", str(tiny_model_dir), str(tmp_path / "other"), "--prompts", str(prompts)]) == 2
    shown = capsys.readouterr().err
    assert "its tokens are not those of" in shown
    assert shown.count("\n") == 1


def test_the_verb_takes_two_folders_and_prints_json(tiny_model_dir, prompts, capsys):
    given = ["diverge", str(tiny_model_dir), str(tiny_model_dir), "--prompts", str(prompts), "--completion-tokens", "4", "--json"]
    assert sterna.main(given) == 0
    assert json.loads(capsys.readouterr().out)["certificate"]["flips"] == 0
