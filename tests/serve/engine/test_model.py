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
from serve.engine.model import Shape

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
    config = getattr(transformers, f"{family}Config")(**{"tie_word_embeddings": False, **sizes, **changes})
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
    assert Shape.of(old, "old") == Shape.of(new | {"rope_parameters": LLAMA3}, "new")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "is a GPT2LMHeadModel; the engine runs LlamaForCausalLM"),
        ({"hidden_act": "gelu"}, "uses the activation 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "scales its rotary embedding by 'yarn'"),
    ],
)
def test_what_the_decoder_does_not_do_is_refused(change: dict[str, Any], complaint: str, tiny_model_dir: Path) -> None:
    config = json.loads((tiny_model_dir / "config.json").read_text())
    with pytest.raises(ValueError, match=complaint):
        Shape.of(config | change, "the folder")


def test_bfloat16_is_close_to_float32(tiny_model_dir: Path) -> None:
    tokens = list(range(5, 60))
    half = Engine.load(tiny_model_dir, EngineConfig(dtype="bfloat16")).logits(tokens).float()
    full = Engine.load(tiny_model_dir, EngineConfig(dtype="float32")).logits(tokens)
    assert float((half - full).abs().mean() / full.std()) < 0.02
