"""The lean decoder gives transformers' logits for every family it claims."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.families import read_shape

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama tied, biased": ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama rope llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama rope linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}}),
    "llama one kv head": ("Llama", {"num_key_value_heads": 1, "head_dim": 24}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral sliding": ("Mistral", {"sliding_window": 7}),
    "qwen2": ("Qwen2", {}),
    "qwen2 sliding": ("Qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "mixtral": ("Mixtral", {"num_local_experts": 5}),
    "qwen2 moe": (
        "Qwen2Moe",
        {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "shared_expert_intermediate_size": 28},
    ),
    "qwen3 moe": (
        "Qwen3Moe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 20,
            "head_dim": 16,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    ),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "olmoe": ("Olmoe", {"num_experts": 6, "num_experts_per_tok": 3}),
    "phi3": ("Phi3", {}),
    "phi3 partial": ("Phi3", {"partial_rotary_factor": 0.5, "sliding_window": 9}),
    "gemma": ("Gemma", {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2",
        {"head_dim": 16, "tie_word_embeddings": True, "sliding_window": 7, "query_pre_attn_scalar": 24, "attn_implementation": "eager"},
    ),
    "gemma3": (
        "Gemma3",
        {"head_dim": 16, "tie_word_embeddings": True, "sliding_window": 7, "query_pre_attn_scalar": 24, "sliding_window_pattern": 3},
    ),
    "granite": ("Granite", {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2}),
    "granite moe": (
        "GraniteMoe",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2, "num_local_experts": 5},
    ),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}),
    "stablelm": ("StableLm", {"use_qkv_bias": True}),
    "stablelm parallel": ("StableLm", {"use_parallel_residual": True}),
    "starcoder2": ("Starcoder2", {"sliding_window": 8, "use_bias": True}),
}


def save_model(folder: Path, family: str, tokenizer_from: Path, **changes: Any) -> Any:
    """A small random model of a family, in `folder` with a tokenizer; transformers' module."""
    import transformers

    torch.manual_seed(1)
    sizes = {
        "vocab_size": 400,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.15,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 3,
    }
    config_class = getattr(transformers, "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config")
    config = config_class(**{"tie_word_embeddings": False, **sizes, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_from / name, folder)
    return model


@pytest.mark.parametrize("case", CASES)
def test_logits_are_transformers_logits(case: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    family, changes = CASES[case]
    theirs = save_model(tmp_path, family, tiny_model_dir, **changes)
    engine = Engine.load(tmp_path, EngineConfig(dtype="float32"))
    tokens = torch.randint(0, 400, (50,), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = theirs(tokens[None]).logits[0]
    torch.testing.assert_close(engine.logits(tokens.tolist()), expected, rtol=0, atol=1e-4)


def test_old_configs_with_rope_scaling_are_read(tmp_path: Path, tiny_model_dir: Path) -> None:
    save_model(tmp_path, "Llama", tiny_model_dir, rope_parameters=LLAMA3)
    new = json.loads((tmp_path / "config.json").read_text())
    rope = new.pop("rope_parameters")
    old = new | {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    assert read_shape(old, "old") == read_shape(new | {"rope_parameters": LLAMA3}, "new")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "is a GPT2LMHeadModel; the lean decoder runs Gemma2ForCausalLM"),
        ({"hidden_act": "relu2"}, "uses the activation 'relu2'"),
        ({"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}}, "scales its rotary embedding by 'proportional'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "by 'llama3' without saying 'low_freq_factor'"),
    ],
)
def test_what_the_decoder_does_not_do_is_refused(change: dict[str, Any], complaint: str, tiny_model_dir: Path) -> None:
    config = json.loads((tiny_model_dir / "config.json").read_text())
    with pytest.raises(ValueError, match=complaint):
        read_shape(config | change, "the folder")


def test_bfloat16_is_close_to_float32(tiny_model_dir: Path) -> None:
    tokens = list(range(5, 60))
    half = Engine.load(tiny_model_dir, EngineConfig(dtype="bfloat16")).logits(tokens).float()
    full = Engine.load(tiny_model_dir, EngineConfig(dtype="float32")).logits(tokens)
    assert float((half - full).abs().mean() / full.std()) < 0.02
