"""The stored tensors of a model by name: fused or not, old names or new, all of them and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from serve.engine.families import read_shape
from serve.engine.parts import Mlp, Parts, parts_of
from serve.engine.weights import read_config

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "pad_token_id": 3,
    "eos_token_id": 0,
    "bos_token_id": 0,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}


def used(parts: Parts) -> set[str]:
    """Every tensor that the parts name."""
    modules: list[str | None] = [parts.embedding, parts.norm, parts.head]
    for layer in parts.layers:
        mlps = [*layer.experts, *([layer.mlp] if layer.mlp else [])]
        modules += [layer.before_attention, *layer.qkv, layer.q_norm, layer.k_norm, *layer.out, layer.after_attention, layer.before_mlp]
        modules += [layer.after_mlp, layer.router, layer.shared_gate, *(name for mlp in mlps for name in (*mlp.gate_up, *mlp.down))]
    names = {name for name in modules if name is not None}
    return {name.partition("[")[0] if name.endswith("]") else f"{name}.weight" for name in names}


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Llama", {}),
        ("Llama", {"tie_word_embeddings": True}),
        ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("Qwen2Moe", {"num_experts": 4, "shared_expert_intermediate_size": 8, "decoder_sparse_step": 2, **EXPERTS}),
        ("Qwen3Moe", {"num_experts": 4, **EXPERTS}),
        ("Olmo2", {}),
        ("Phi3", {}),
        ("Gemma3", {}),
        ("GraniteMoe", {"num_local_experts": 4}),
        ("StableLm", {"use_parallel_residual": True}),
        ("Starcoder2", {"use_bias": False}),
    ],
)
def test_every_stored_weight_has_its_place(family: str, changes: dict[str, Any], original: bool, tmp_path: Path) -> None:
    import transformers

    config = getattr(transformers, "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config")(**SIZES | changes)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(tmp_path, save_original_format=original)
    with safe_open(str(tmp_path / "model.safetensors"), framework="pt") as file:
        stored = set(file.keys())
    shape = read_shape(read_config(tmp_path), str(tmp_path))
    assert used(parts_of(shape, stored)) == {name for name in stored if name.endswith("weight") or "experts" in name}


def test_an_experts_matrix_is_named_in_its_stack() -> None:
    config = {"architectures": ["MixtralForCausalLM"], **SIZES, "num_local_experts": 3}
    shape = read_shape(config, "here")
    stacked = {"model.layers.1.mlp.gate.weight", "model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.down_proj"}
    layer = parts_of(shape, stacked).layers[1]
    assert layer.router == "model.layers.1.mlp.gate"
    assert layer.experts[2] == Mlp(("model.layers.1.mlp.experts.gate_up_proj[2]",), ("model.layers.1.mlp.experts.down_proj[2]",))


def test_quantised_modules_are_found_by_their_packed_weights() -> None:
    shape = read_shape({"architectures": ["Phi3ForCausalLM"], **SIZES}, "here")
    layer = parts_of(shape, {"model.layers.0.self_attn.qkv_proj.weight_packed", "lm_head.weight_packed"})
    assert layer.layers[0].qkv == ("model.layers.0.self_attn.qkv_proj",)
    assert layer.head == "lm_head"
