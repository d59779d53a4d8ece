"""config.json in, Shape out: old and new spellings, what is missing, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from serve.engine.families import FAMILIES, read_shape, refusal

SIZES: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def config(family: str, **changes: Any) -> dict[str, Any]:
    return {"architectures": [f"{family}ForCausalLM"], **SIZES, **changes}


def their_config(family: str, **changes: Any) -> Any:
    import transformers

    return getattr(transformers, "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config")(**{**SIZES, **changes})


@pytest.mark.parametrize("family", [name.removesuffix("ForCausalLM") for name in FAMILIES])
def test_what_a_config_leaves_out_is_what_transformers_fills_in(family: str) -> None:
    """A bare config reads like the one that transformers writes with everything filled in."""
    full = their_config(family).to_dict() | {"architectures": [f"{family}ForCausalLM"]}
    bare = config(family, eos_token_id=full.get("eos_token_id"))
    assert read_shape(bare, "bare") == read_shape(full, "full")


@pytest.mark.parametrize(
    ("family", "old", "new"),
    [
        (
            "Llama",
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
        ),
        (
            "Gemma3",
            {
                "rope_theta": 2e6,
                "rope_local_base_freq": 2e4,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                "sliding_window_pattern": 3,
            },
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
                },
                "layer_types": ["full_attention" if i % 3 == 2 else "sliding_attention" for i in range(12)],
            },
        ),
        (
            "Phi3",
            {
                "partial_rotary_factor": 0.5,
                "rope_scaling": {"type": "su", "short_factor": [1.0, 2.0], "long_factor": [2.0, 4.0]},
                "original_max_position_embeddings": 32,
            },
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "short_factor": [1.0, 2.0],
                    "long_factor": [2.0, 4.0],
                    "partial_rotary_factor": 0.5,
                    "original_max_position_embeddings": 32,
                }
            },
        ),
        ("Gemma", {"hidden_act": "gelu"}, {"hidden_act": "gelu_pytorch_tanh"}),
        ("SmolLM3", {"no_rope_layer_interval": 3}, {"no_rope_layers": [1, 1, 0] * 4}),
        ("Qwen3Moe", {"num_experts": 9}, {"num_local_experts": 9}),
    ],
)
def test_old_spellings_read_as_new_ones(family: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    assert read_shape(config(family, **old), "old") == read_shape(config(family, **new), "new")


@pytest.mark.parametrize(
    ("family", "changes", "windows"),
    [
        ("Llama", {"sliding_window": 8}, (None,) * 12),
        ("Mistral", {"sliding_window": 8}, (8,) * 12),
        ("Mistral", {"sliding_window": None}, (None,) * 12),
        ("Mistral", {"sliding_window": 8, "layer_types": ["full_attention"] * 12}, (8,) * 12),
        ("Ministral", {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"] * 6}, (None, 8) * 6),
        ("Qwen2", {"sliding_window": 8}, (None,) * 12),
        ("Qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 10}, (*(None,) * 10, 8, 8)),
        ("Qwen3Moe", {"sliding_window": 8, "use_sliding_window": True}, (8,) * 12),
        ("Gemma2", {"sliding_window": 8}, (8, None) * 6),
        ("Gemma3", {"sliding_window": 8}, (*(8,) * 5, None) * 2),
        ("Olmo3", {"sliding_window": 8}, (8, 8, 8, None) * 3),
    ],
)
def test_windows_per_layer(family: str, changes: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    shape = read_shape(config(family, **changes), "here")
    assert shape.windows == windows
    assert shape.window == (8 if windows == (8,) * 12 else None)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "the folder is a GPT2LMHeadModel; the lean decoder runs Gemma2ForCausalLM"),
        ({}, r"the folder is a \?"),
        (config("Llama", hidden_act="relu2"), "the folder uses the activation 'relu2'"),
        (config("Llama", rope_parameters={"rope_type": "proportional"}), "scales its rotary embedding by 'proportional'"),
        (config("Llama", rope_scaling={"type": "llama3", "factor": 2.0}), "by 'llama3' without saying 'low_freq_factor'"),
        (config("Olmoe", clip_qkv=8.0), "clips its queries"),
        (config("StableLm", qk_layernorm=True), "norms its queries and keys head by head"),
        (config("Gemma3", use_bidirectional_attention=True), "attends in both directions"),
    ],
)
def test_what_the_decoder_does_not_do_is_refused(given: dict[str, Any], complaint: str) -> None:
    assert refusal(given) is not None
    with pytest.raises(ValueError, match=complaint):
        read_shape(given, "the folder")


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"])
def test_a_config_without_a_size_is_one_line(name: str) -> None:
    given = config("Llama")
    del given[name]
    with pytest.raises(ValueError, match=f"LlamaForCausalLM whose config.json does not say {name}"):
        refusal(given)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="6 heads for 4 key-value heads"):
        refusal(config("Llama", num_key_value_heads=4))
