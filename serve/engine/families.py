"""The families the lean decoder runs, and how each one's config.json reads as a `Shape`.

Promise: a folder is run by the lean decoder if and only if its architecture is in `FAMILIES` and `refusal` finds nothing; its float32
logits are then within 1e-4 of transformers' own module. Everything else is for `guest.py`. Price: none.
What a config.json does not say is what transformers' configuration class would fill in; folders saved before rope_parameters,
layer_types and the like existed read the same as new ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from serve.engine.fields import checked
from serve.engine.rope import Rope
from serve.engine.shape import Experts, Shape

__all__ = ["FAMILIES", "read_shape", "refusal"]

Config = dict[str, Any]
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu": "gelu"}
FULL, SLIDING = "full_attention", "sliding_attention"
_NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One architecture: what its config.json leaves out, and what is odd about it."""

    defaults: Config = field(default_factory=dict)
    theta: float = 10_000.0
    partial: bool = False
    """Whether `partial_rotary_factor` counts: other families may write it and turn the whole head."""
    ropes_by_type: bool = False
    """Whether layers with and without a window have rotary embeddings of their own."""
    types: Callable[[Config, int], bool] | None = None
    """(config, layer index) -> whether the layer has the window, where `layer_types` does not say; None: no layer, ever."""
    oddities: Callable[[Config], dict[str, Any]] = lambda config: {}
    """The fields of Shape that differ from Llama's."""
    unknown: Callable[[Config], str | None] = lambda config: None
    """What of a config.json is not run, in words that follow 'the folder'."""


def _everywhere(config: Config, layer: int) -> bool:
    return True


def _qwen_window(config: Config, layer: int) -> bool:
    return bool(config.get("use_sliding_window")) and layer >= config.get("max_window_layers", 28)


def _qwen2_moe_window(config: Config, layer: int) -> bool:
    return bool(config.get("use_sliding_window")) and layer % 2 == 0 and layer < config.get("max_window_layers", 28)


def _experts(config: Config, size: str, *, normalise: bool | None = None, shared: str = "") -> dict[str, Any]:
    experts = Experts(
        count=config.get("num_local_experts") or config["num_experts"],  # one thing, two names
        per_token=config["num_experts_per_tok"],
        size=config[size],
        normalise=bool(config.get("norm_topk_prob")) if normalise is None else normalise,
        shared_size=config[shared] if shared else 0,
    )
    dense, step = config.get("mlp_only_layers") or (), config.get("decoder_sparse_step", 1)
    return {"experts": experts, "sparse": tuple(i not in dense and (i + 1) % step == 0 for i in range(config["num_hidden_layers"]))}


def _gemma(config: Config) -> dict[str, Any]:
    old = config["hidden_act"] == "gelu"  # what the first folders wrote for the tanh form
    return {"norm_offset": 1.0, "embedding_multiplier": config["hidden_size"] ** 0.5} | ({"activation": "gelu_tanh"} if old else {})


def _gemma2(config: Config) -> dict[str, Any]:
    return {
        "norm_offset": 1.0,
        "embedding_multiplier": config["hidden_size"] ** 0.5,
        "attention_scale": config["query_pre_attn_scalar"] ** -0.5,
        "attention_soft_cap": config.get("attn_logit_softcapping"),
        "logit_soft_cap": config.get("final_logit_softcapping"),
    }


def _gemma3(config: Config) -> dict[str, Any]:
    return _gemma2(config) | {"qk_norm": "head"}


def _granite(config: Config) -> dict[str, Any]:
    return {
        "embedding_multiplier": float(config.get("embedding_multiplier", 1.0)),
        "residual_multiplier": float(config.get("residual_multiplier", 1.0)),
        "attention_scale": float(config.get("attention_multiplier", 1.0)),
        "logit_multiplier": 1 / config.get("logits_scaling", 1.0),
    }


def _smollm3(config: Config) -> dict[str, Any]:
    interval = config.get("no_rope_layer_interval", 4)
    turned = config.get("no_rope_layers") or [(i + 1) % interval != 0 for i in range(config["num_hidden_layers"])]
    return {"rope_of": tuple(0 if turn else None for turn in turned)}


def _smollm3_window(config: Config, layer: int) -> bool:
    return bool(config.get("use_sliding_window")) and _smollm3(config)["rope_of"][layer] is None


_GEMMA = {"tie_word_embeddings": True, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh"}
_GEMMA2 = _GEMMA | {"query_pre_attn_scalar": 256, "sliding_window": 4096}
_BIDIRECTIONAL = "attends in both directions"

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(),
    "MistralForCausalLM": Family(defaults={"sliding_window": 4096}, types=_everywhere),
    "MinistralForCausalLM": Family(defaults={"sliding_window": 4096}, types=lambda c, layer: True),
    "MixtralForCausalLM": Family(
        defaults={"rms_norm_eps": 1e-5, "num_local_experts": 8, "num_experts_per_tok": 2},
        theta=1e6,
        types=_everywhere,
        oddities=lambda c: _experts(c, "intermediate_size", normalise=True),
    ),
    "Qwen2ForCausalLM": Family(types=_qwen_window),
    "Qwen2MoeForCausalLM": Family(
        defaults={"num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632},
        types=_qwen2_moe_window,
        oddities=lambda c: _experts(c, "moe_intermediate_size", shared="shared_expert_intermediate_size"),
    ),
    "Qwen3ForCausalLM": Family(defaults={"head_dim": 128}, types=_qwen_window, oddities=lambda c: {"qk_norm": "head"}),
    "Qwen3MoeForCausalLM": Family(
        defaults={"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
        types=lambda c, layer: bool(c.get("use_sliding_window")),
        oddities=lambda c: {"qk_norm": "head"} | _experts(c, "moe_intermediate_size"),
    ),
    "Olmo2ForCausalLM": Family(defaults={"rms_norm_eps": 1e-5}, oddities=lambda c: {"qk_norm": "whole"}),
    "Olmo3ForCausalLM": Family(
        defaults={"rms_norm_eps": 1e-5, "sliding_window": 4096},
        theta=500_000.0,
        ropes_by_type=True,
        types=lambda c, layer: (layer + 1) % 4 != 0,
        oddities=lambda c: {"qk_norm": "whole"},
    ),
    "OlmoeForCausalLM": Family(
        defaults={"rms_norm_eps": 1e-5, "num_experts": 64, "num_experts_per_tok": 8},
        oddities=lambda c: {"qk_norm": "whole"} | _experts(c, "intermediate_size"),
        unknown=lambda c: "clips its queries, keys and values (clip_qkv)" if c.get("clip_qkv") is not None else None,
    ),
    "Phi3ForCausalLM": Family(defaults={"rms_norm_eps": 1e-5}, partial=True, types=_everywhere),
    "GemmaForCausalLM": Family(
        defaults=_GEMMA, oddities=_gemma, unknown=lambda c: _BIDIRECTIONAL if c.get("use_bidirectional_attention") else None
    ),
    "Gemma2ForCausalLM": Family(
        defaults=_GEMMA2 | {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
        types=lambda c, layer: layer % 2 == 0,
        oddities=_gemma2,
        unknown=lambda c: _BIDIRECTIONAL if c.get("use_bidirectional_attention") else None,
    ),
    "Gemma3ForCausalLM": Family(
        defaults=_GEMMA2 | {"rope_local_base_freq": 10_000.0},
        theta=1e6,
        ropes_by_type=True,
        types=lambda c, layer: (layer + 1) % c.get("sliding_window_pattern", 6) != 0,
        oddities=_gemma3,
        unknown=lambda c: _BIDIRECTIONAL if c.get("use_bidirectional_attention") else None,
    ),
    "GraniteForCausalLM": Family(oddities=_granite),
    "GraniteMoeForCausalLM": Family(
        defaults={"num_local_experts": 8, "num_experts_per_tok": 2},
        oddities=lambda c: _granite(c) | _experts(c, "intermediate_size", normalise=True),
    ),
    "SeedOssForCausalLM": Family(defaults={"head_dim": 128}),
    "SmolLM3ForCausalLM": Family(
        defaults={"tie_word_embeddings": True, "num_key_value_heads": 4}, theta=2e6, types=_smollm3_window, oddities=_smollm3
    ),
    "StableLmForCausalLM": Family(
        defaults={"rms_norm_eps": None, "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25},
        partial=True,
        oddities=lambda c: {"norm": "layer", "parallel": bool(c.get("use_parallel_residual"))},
        unknown=lambda c: "norms its queries and keys head by head (qk_layernorm)" if c.get("qk_layernorm") else None,
    ),
    "Starcoder2ForCausalLM": Family(
        defaults={"tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5, "num_key_value_heads": 2},
        types=_everywhere,
        oddities=lambda c: {"norm": "layer", "gated": False},
    ),
}


def refusal(config: Config) -> str | None:
    """Why the lean decoder does not run a folder with this config.json, in words that follow 'the folder'; None if it does.

    ValueError for sizes that make no model: guessed ones would load in transformers, with layers that nobody trained.
    """
    architecture = _architecture(config)
    if architecture not in FAMILIES:
        return f"is a {architecture}; the lean decoder runs {', '.join(sorted(FAMILIES))}"
    family, filled = FAMILIES[architecture], _filled(config)
    activation = filled.get("hidden_activation") or filled["hidden_act"]
    if activation not in _ACTIVATIONS:
        return f"uses the activation {activation!r}; the lean decoder runs {', '.join(sorted(_ACTIVATIONS))}"
    if (reason := family.unknown(filled)) is not None:
        return reason
    try:
        ropes = _ropes(family, filled, _head_dim(filled))
    except ValueError as error:
        return str(error)
    _check_ropes(ropes, _max_length(filled))
    return None


def _architecture(config: Config) -> str:
    """The first of those that config.json names."""
    named = checked({"architectures": config.get("architectures")})["architectures"]
    return str(named[0]) if named else "?"


def _filled(config: Config) -> Config:
    """With what the family's config.json leaves out; ValueError for what makes no model."""
    architecture = _architecture(config)
    filled = checked({"hidden_act": "silu"} | FAMILIES[architecture].defaults | config)
    _check_sizes(filled, architecture)
    return filled


def _check_sizes(config: Config, architecture: str) -> None:
    missing = [name for name in _NEEDED if not config.get(name)]
    if missing:
        raise ValueError(f"model: a {architecture} whose config.json does not say {', '.join(missing)}; save the model again")
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads") or config["num_attention_heads"]
    if heads % kv_heads:
        raise ValueError(
            f"model: its config.json has {heads} heads for {kv_heads} key-value heads, which is no multiple; save the model again"
        )
    if _head_dim(config) < 1:
        raise ValueError(f"model: its config.json divides hidden_size {config['hidden_size']} among {heads} heads; save the model again")
    experts, chosen = config.get("num_local_experts") or config.get("num_experts"), config.get("num_experts_per_tok")
    if experts and chosen and chosen > experts:
        raise ValueError(f"model: its config.json chooses {chosen} of {experts} experts for a token; save the model again")


def _check_ropes(ropes: tuple[Rope, ...], max_length: int) -> None:
    """ValueError for numbers that turn nothing."""
    for rope in ropes:
        pairs = rope.dim // 2
        counts = {len(factors) for factors in (rope.short_factors, rope.long_factors) if factors}
        if rope.dim < 2 or rope.dim % 2 or counts - {pairs}:
            what = f"{min(counts - {pairs}, default=0)} factors for " if counts - {pairs} else ""
            raise ValueError(f"model: its config.json has {what}{rope.dim} dimensions of a head to turn by pairs; save the model again")
        if not all(bool(rope.frequencies(length).isfinite().all()) for length in (1, max_length)):
            raise ValueError("model: the rope_parameters of its config.json make no rotary embedding; save the model again")


def read_shape(config: Config, where: str) -> Shape:
    """The shape of the model in folder `where`. ValueError for what the lean decoder does not run."""
    if (reason := refusal(config)) is not None:
        raise ValueError(f"model: {where} {reason}")
    family, filled = FAMILIES[_architecture(config)], _filled(config)
    layers, heads, head_dim = filled["num_hidden_layers"], filled["num_attention_heads"], _head_dim(filled)
    windows = _windows(family, filled)
    ropes = _ropes(family, filled, head_dim)
    eos, vocab_size = filled.get("eos_token_id"), filled["vocab_size"]
    fields: dict[str, Any] = {
        "num_layers": layers,
        "hidden_size": filled["hidden_size"],
        "mlp_size": filled["intermediate_size"],
        "num_heads": heads,
        "num_kv_heads": filled.get("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "vocab_size": vocab_size,
        "max_length": _max_length(filled),
        "eos_token_ids": tuple(
            token for token in (eos if isinstance(eos, list) else [eos]) if token is not None and 0 <= token < vocab_size
        ),
        "tied": bool(filled.get("tie_word_embeddings", False)),
        "norm_eps": float(filled.get("layer_norm_eps") or filled.get("norm_epsilon") or filled.get("rms_norm_eps") or 1e-6),
        "activation": _ACTIVATIONS[filled.get("hidden_activation") or filled["hidden_act"]],
        "windows": windows,
        "ropes": ropes,
        "rope_of": tuple(0 if window is None or len(ropes) == 1 else 1 for window in windows),
        "attention_scale": head_dim**-0.5,
        "sparse": (False,) * layers,
    }
    return Shape(**fields | family.oddities(filled))


def _head_dim(config: Config) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _max_length(config: Config) -> int:
    return config.get("max_position_embeddings") or 2048


def _windows(family: Family, config: Config) -> tuple[int | None, ...]:
    layers, window, types = config["num_hidden_layers"], config.get("sliding_window"), config.get("layer_types")
    if family.types is None or not window or config.get("use_sliding_window") is False:
        return (None,) * layers
    if types and family.types is not _everywhere:  # Mistral's module has one window for all layers, whatever layer_types says
        return tuple(window if kind == SLIDING else None for kind in types)
    return tuple(window if family.types(config, i) else None for i in range(layers))


def _ropes(family: Family, config: Config, head_dim: int) -> tuple[Rope, ...]:
    """One, or where they differ by type: that of layers without a window, and that of layers with one."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    plain = {"rope_theta": config.get("rope_theta") or family.theta}
    if family.partial and config.get("partial_rotary_factor"):
        plain["partial_rotary_factor"] = config["partial_rotary_factor"]
    if not family.ropes_by_type:
        return (_rope(plain | given, family, config, head_dim),)
    nested = given if FULL in given or SLIDING in given else {FULL: given}
    local = {"rope_theta": config.get("rope_local_base_freq") or plain["rope_theta"]}
    with_window = _rope(local | (nested.get(SLIDING) or {}), family, config, head_dim)
    return _rope(plain | (nested.get(FULL) or {}), family, config, head_dim), with_window


def _rope(given: Config, family: Family, config: Config, head_dim: int) -> Rope:
    if not family.partial:
        given = {key: value for key, value in given.items() if key != "partial_rotary_factor"}
    if config.get("original_max_position_embeddings"):  # Phi-3 writes it beside rope_parameters, and there it counts
        given = given | {"original_max_position_embeddings": config["original_max_position_embeddings"]}
    return Rope.of(given, head_dim, _max_length(config))
