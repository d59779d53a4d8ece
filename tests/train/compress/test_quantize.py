"""Weights to int8 and back: the rounding's bound, the folder in transformers, the bytes on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.compress.quantize import disk_bytes, export_int8, linear_layers, load_dense, plan_int8, round_to_nearest


@given(st.integers(0, 2**31), st.integers(1, 8), st.integers(1, 40), st.sampled_from([torch.float32, torch.bfloat16]), st.floats(1e-6, 1e3))
def test_rounding_is_within_half_a_step(seed, rows, columns, dtype, size):
    weight = (torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size).to(dtype)
    q, scale = round_to_nearest(weight, dtype)
    assert q.dtype == torch.int8
    assert q.abs().max() <= 127
    error = (weight.float() - q.float() * scale.float()).abs()
    assert (error <= 0.5001 * scale.float()).all()


def test_zero_rows_stay_zero_and_tiny_weights_do_not_divide_by_zero():
    q, scale = round_to_nearest(torch.tensor([[0.0, 0.0], [1e-44, -1e-44]]), torch.float32)
    assert torch.isfinite(scale).all()
    assert q[0].tolist() == [0, 0]


@pytest.fixture(scope="module")
def exported(tiny_model_dir, tmp_path_factory):
    output = tmp_path_factory.mktemp("int8")
    model = load_dense(tiny_model_dir)
    plan = plan_int8(model, lm_head=False)
    export_int8(model, plan, tiny_model_dir, output)
    return output, plan


def test_plan_takes_every_linear_layer_but_the_tied_head(exported, tiny_model_dir):
    _, plan = exported
    chosen = {matrix.name: matrix.option for matrix in plan}
    assert chosen.pop("lm_head") == "keep"
    assert len(chosen) == 2 * 7
    assert set(chosen.values()) == {"int8"}


def test_transformers_loads_the_folder_with_the_fake_quantised_logits(exported, tiny_model_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output, plan = exported
    reference = load_dense(tiny_model_dir, torch.float32)
    layers = linear_layers(reference)
    for matrix in plan:
        if matrix.option == "int8":
            q, scale = round_to_nearest(layers[matrix.name].weight, torch.float32)
            layers[matrix.name].weight.data = q.float() * scale
    loaded = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    tokens = torch.tensor([AutoTokenizer.from_pretrained(output)("def add(left, right):\n    return left + right\n")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, reference(tokens).logits)
        assert not torch.equal(loaded(tokens).logits, load_dense(tiny_model_dir, torch.float32)(tokens).logits)


def test_config_says_what_was_done(exported):
    described = json.loads((exported[0] / "config.json").read_text())["quantization_config"]
    assert described["quant_method"] == "compressed-tensors"
    assert described["format"] == "pack-quantized"
    assert described["quantization_status"] == "compressed"
    assert described["ignore"] == ["lm_head"]


def test_bytes_on_disk_are_conserved_and_predicted(exported, tiny_model_dir):
    output, plan = exported
    for folder in (output, tiny_model_dir):
        sizes = dict(disk_bytes(folder))
        total = sizes.pop("total")
        header = total - sum(sizes.values())
        assert 0 < header < 20_000
    before, after = disk_bytes(tiny_model_dir), disk_bytes(output)
    assert after["embeddings"] == before["embeddings"]
    assert after["matrices"] + after["scales"] == sum(matrix.bytes_after for matrix in plan if matrix.option == "int8")


def test_an_untied_head_is_compressed_only_when_asked():
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}
    model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=False, **shape))
    assert {m.name: m.option for m in plan_int8(model, lm_head=False)}["lm_head"] == "keep"
    assert {m.name: m.option for m in plan_int8(model, lm_head=True)}["lm_head"] == "int8"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "quantised already"),
        ({"architectures": ["BertModel"], "model_type": "bert_of_mars"}, "does not know the architecture BertModel"),
        ({"architectures": ["CLIPModel"], "model_type": "clip"}, "not a causal language model"),
    ],
)
def test_what_cannot_be_compressed_is_one_line(tiny_model_dir: Path, tmp_path, change, message):
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(ValueError, match=message) as error:
        load_dense(tmp_path / "model")
    assert "\n" not in str(error.value)


def test_a_model_without_linear_layers_is_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40))
    with pytest.raises(ValueError, match="no linear layers"):
        plan_int8(model, lm_head=False)
