from __future__ import annotations

import json
import shutil
import typing
from pathlib import Path

import pytest
import torch

from cluster.artifact import publish
from train.architectures import make_config, make_model
from train.config import EvaluateConfig
from train.model_folder import is_quantised, load_model, load_tokenizer, open_model, write_model
from train.plan.shapes import Architecture, shape_of_width

SETTINGS = EvaluateConfig(models=("m",), data=("d",), output="o")  # any settings will do


@pytest.fixture
def plain_copy(tmp_path: Path, tiny_model_dir: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def test_a_plain_folder_opens_and_its_digest_follows_its_content(plain_copy: Path):
    path, digest = open_model(str(plain_copy))
    assert path == plain_copy
    assert open_model(str(plain_copy))[1] == digest
    (plain_copy / "config.json").write_text((plain_copy / "config.json").read_text() + " ")
    assert open_model(str(plain_copy))[1] != digest


@pytest.mark.parametrize(
    ("missing", "message"),
    [("config.json", "no config.json"), ("tokenizer.json", "no tokenizer"), ("model.safetensors", "no weights")],
)
def test_what_is_missing_is_named(plain_copy: Path, missing: str, message: str):
    (plain_copy / missing).unlink()
    with pytest.raises(ValueError, match=message) as caught:
        open_model(str(plain_copy))
    assert str(plain_copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_mistakes_have_their_own_line(tmp_path: Path, plain_copy: Path):
    with pytest.raises(ValueError, match="no such model folder"):
        open_model(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="is a file"):
        open_model(str(plain_copy / "config.json"))
    (plain_copy / "model.safetensors").rename(plain_copy / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled, not safetensors"):
        open_model(str(plain_copy))
    for text in ("{", "[1]"):
        (plain_copy / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json is not JSON"):
            open_model(str(plain_copy))
    (plain_copy / "config.json").rename(plain_copy / "adapter_config.json")
    with pytest.raises(ValueError, match="adapter without its model"):
        open_model(str(plain_copy))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 3}, r"asks for 9 weights that are not there in that shape, such as model\.layers\.2\."),
        ({"intermediate_size": 96}, r"asks for 6 weights that are not there in that shape, such as model\.layers\.0\.mlp"),
        ({"model_type": "t5"}, "not a causal language model"),
        ({"model_type": "no-such-family"}, "not a causal language model"),
    ],
)
def test_a_configuration_that_is_not_the_weights_is_one_line(plain_copy: Path, change: dict, message: str):
    """transformers would draw what is missing at random, and warn."""
    config = json.loads((plain_copy / "config.json").read_text())
    (plain_copy / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message) as caught:
        load_model(plain_copy, torch.float32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("architecture", typing.get_args(Architecture))
def test_what_is_written_of_any_architecture_is_all_there(architecture: str, tiny_model_dir: Path, tmp_path: Path):
    model = make_model(make_config(shape_of_width(32, vocab_size=400, max_length=32, architecture=architecture)))
    write_model(model, tmp_path, dtype=torch.float32, tokenizer=tiny_model_dir)
    again = dict(load_model(tmp_path, torch.float32).named_parameters())
    assert {name: again[name].equal(weight) for name, weight in model.named_parameters()} == dict.fromkeys(again, True)


def test_weights_and_tokenizers_that_are_cut_short_are_one_line(plain_copy: Path):
    weights = plain_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="its weights cannot be read"):
        load_model(plain_copy, torch.float32)
    (plain_copy / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="its tokenizer cannot be read") as caught:
        load_tokenizer(plain_copy)
    assert "\n" not in str(caught.value)


def test_quantised_weights_are_loaded_dense(tmp_path: Path, tiny_model_dir: Path):
    """The decoder alone must work too: transformers itself decompresses only at the whole model's first forward."""
    from train.compress.calibrate import matrices, weight_of
    from train.compress.candidates import degraded
    from train.compress.export import export
    from train.compress.options import option
    from train.compress.quantize import load_dense

    original = load_dense(tiny_model_dir)
    names = [matrix.name for matrix in matrices(original) if matrix.role == "linear"]
    export(original, {name: degraded(weight_of(original, name), option("int8"), None) for name in names}, tiny_model_dir, tmp_path)
    assert is_quantised(tmp_path)
    assert not is_quantised(tiny_model_dir)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        dense = load_model(tmp_path, torch.float32).get_decoder()(ids).last_hidden_state
        exact = load_model(tiny_model_dir, torch.float32).get_decoder()(ids).last_hidden_state
    assert 0 < float((dense - exact).abs().max()) < 0.1 * float(exact.abs().max())


def test_a_folder_of_another_stage_is_refused(tmp_path: Path):
    with publish(str(tmp_path / "corpus"), stage="curate", inputs={}, config=SETTINGS) as draft:
        (draft.dir / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="was made by `sterna curate`"):
        open_model(str(tmp_path / "corpus"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_written_model_gives_the_same_logits_and_generates(tmp_path: Path, tiny_model_dir: Path, dtype: torch.dtype):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    write_model(model, tmp_path, dtype=dtype, tokenizer=tiny_model_dir)
    assert open_model(str(tmp_path))[0] == tmp_path
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.dtype == dtype
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(dtype))
        torch.testing.assert_close(again.float()(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    made = again.generate(ids, max_new_tokens=4, min_new_tokens=4, attention_mask=torch.ones_like(ids))
    assert made.shape == (1, 7)
    assert AutoTokenizer.from_pretrained(tmp_path).encode("def") == AutoTokenizer.from_pretrained(tiny_model_dir).encode("def")
