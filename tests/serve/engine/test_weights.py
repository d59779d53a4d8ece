"""Quantised folders: int8 as compressed-tensors writes it, run by kernels, with the logits transformers gets from the same folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.native.library import refusal
from serve.engine.request import Sampling
from train.compress.calibrate import matrices, weight_of
from train.compress.candidates import degraded
from train.compress.export import export
from train.compress.options import option
from train.compress.quantize import load_dense


def quantised(source: Path, output: Path, *, lm_head: bool = False) -> Path:
    """`source` with its linear layers in int8."""
    model = load_dense(source, torch.float32)
    names = [m.name for m in matrices(model) if m.role == "linear" or (m.role == "head" and lm_head)]
    export(model, {name: degraded(weight_of(model, name), option("int8"), None) for name in names}, source, output)
    return output


@pytest.fixture(scope="module")
def int8_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantised(tiny_model_dir, tmp_path_factory.mktemp("int8") / "model")


def their_logits(folder: Path, tokens: list[int], dtype: torch.dtype) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)(torch.tensor([tokens])).logits[0]


def test_int8_logits_are_transformers_logits(int8_dir: Path) -> None:
    tokens = list(range(5, 60))
    ours = Engine.load(int8_dir, EngineConfig(dtype="float32")).logits(tokens)
    torch.testing.assert_close(ours, their_logits(int8_dir, tokens, torch.float32), rtol=0, atol=1e-4)


def test_int8_is_not_the_original(int8_dir: Path, tiny_model_dir: Path) -> None:
    tokens = list(range(5, 60))
    config = EngineConfig(dtype="float32")
    difference = Engine.load(int8_dir, config).logits(tokens) - Engine.load(tiny_model_dir, config).logits(tokens)
    assert 0 < float(difference.abs().max()) < 1.0


@pytest.fixture(scope="module")
def mixed_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Attention in int8 per channel, gate and up in int4 by groups of 32, down as it was: one of each in every layer."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, apply_quantization_config

    model = load_dense(tiny_model_dir, torch.float32)
    int8 = {"weights": {"num_bits": 8, "type": "int", "strategy": "channel"}, "targets": ["re:.*self_attn.*"]}
    int4 = {"weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}, "targets": ["re:.*(gate|up)_proj"]}
    config = QuantizationConfig(config_groups={"a": int8, "b": int4}, ignore=["lm_head"], format="pack-quantized")
    apply_quantization_config(model, config, show_progress=False)
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None and hasattr(module, "weight_scale"):
            groups = module.weight_scale.shape[-1]
            largest = module.weight.detach().abs().unflatten(1, (groups, -1)).amax(-1)
            module.weight_scale.data = largest / (2 ** (scheme.weights.num_bits - 1) - 1)
    compressor = ModelCompressor.from_pretrained_model(model, "pack-quantized")
    compressor.compress_model(model)
    compressor.quantization_config.quantization_status = QuantizationStatus.COMPRESSED
    folder = tmp_path_factory.mktemp("mixed") / "model"
    shutil.copytree(tiny_model_dir, folder)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))
    return folder


def test_int8_and_int4_in_one_model_are_transformers_logits(mixed_dir: Path) -> None:
    tokens = list(range(5, 60))
    stored = {key for file in mixed_dir.glob("*.safetensors") for key in load_file(file)}
    assert sum(key.endswith("weight_packed") for key in stored) == 6 * sum(key.endswith("down_proj.weight") for key in stored) > 0
    ours = Engine.load(mixed_dir, EngineConfig(dtype="float32")).logits(tokens)
    torch.testing.assert_close(ours, their_logits(mixed_dir, tokens, torch.float32), rtol=0, atol=1e-4)


@pytest.mark.skipif(refusal() is not None, reason=str(refusal()))
@pytest.mark.parametrize("name", ["int8_dir", "mixed_dir"])
def test_in_bf16_our_kernels_read_the_same_weights(name: str, request: pytest.FixtureRequest) -> None:
    folder, tokens = request.getfixturevalue(name), list(range(5, 60))
    exact = Engine.load(folder, EngineConfig(dtype="float64", kernels="torch")).logits(tokens)
    ours, theirs = (
        float((Engine.load(folder, EngineConfig(dtype="bfloat16", kernels=kernels)).logits(tokens) - exact).abs().mean())
        for kernels in ("native", "torch")
    )
    assert ours < 0.02 * float(exact.std())
    assert ours < theirs, "activations that are not rounded to bf16 are worth something"


def test_an_untied_int8_head_with_biases_is_read(tmp_path: Path, tiny_model_dir: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    source = tmp_path / "source"
    shutil.copytree(tiny_model_dir, source)
    torch.manual_seed(2)
    sizes = {"vocab_size": 400, "hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 2}  # 50 % 4 != 0: a padded last word
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, bos_token_id=0, eos_token_id=0))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.bias.normal_()
    model.save_pretrained(source)
    folder = quantised(source, tmp_path / "int8", lm_head=True)
    tokens = list(range(5, 45))
    ours = Engine.load(folder, EngineConfig(dtype="float32")).logits(tokens)
    torch.testing.assert_close(ours, their_logits(folder, tokens, torch.float32), rtol=0, atol=1e-4)


def test_int8_generates_the_same_drafted_or_not(int8_dir: Path) -> None:
    prompts = [list(range(5, 40)), [7, 8, 9] * 6]
    outcomes = [
        [
            c.tokens
            for c in Engine.load(int8_dir, EngineConfig(dtype="float64", draft=draft)).generate(prompts, Sampling(seed=1, temperature=0.5))
        ]
        for draft in ("off", "ngram")
    ]
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"quant_method": "gptq"}, "quantised by 'gptq'"),
        ({"config_groups": {"a": {"weights": {"num_bits": 4, "type": "float", "strategy": "channel"}}}}, "has 4-bit weights"),
        ({"config_groups": {}}, "stored packed, but no config group names it"),
        ({"config_groups": {"a": {"weights": {"num_bits": 8, "type": "int", "strategy": "tensor"}}}}, "8-bit weights \\(int, per tensor"),
    ],
)
def test_other_quantisations_are_refused(change: dict[str, Any], complaint: str, int8_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(int8_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=complaint):
        Engine.load(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("vocab_size", 300, r"holds model.embed_tokens \[400, 64\], where its config.json asks for \[300, 64\]"),
        ("head_dim", 32, r"self_attn.q_proj \[64, 64\], .* asks for \[256, 64\]"),
        ("intermediate_size", 64, r"mlp.up_proj \[128, 64\], where its config.json asks for \[128, 64\]"),
        ("num_attention_heads", 8, r"self_attn.q_proj \[64, 64\], .* asks for \[192, 64\]"),
    ],
)
def test_weights_of_other_sizes_than_the_config_says_are_refused(
    field: str, value: int, complaint: str, dtype: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Our own kernels would read and write where there is nothing."""
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"head_dim": 16}
    (folder / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(ValueError, match=complaint):
        Engine.load(folder, EngineConfig(dtype=dtype))


def test_packed_weights_of_other_sizes_are_refused(mixed_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(mixed_dir, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(ValueError, match=r"holds .*gate_proj \[128, 64\].* asks for \[192, 64\]"):
        Engine.load(folder, EngineConfig(dtype="bfloat16"))
