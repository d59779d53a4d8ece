"""What the fields of a config.json may hold: one line for a value that makes no model, before anything is computed from it.

Promise: `checked` gives back a config whose known fields are of their kind and in range, and raises ValueError, naming field and value,
for any other; fields it does not know are nobody's business. Price: one look at each field.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["checked"]

Config = dict[str, Any]
_MOST = 1 << 20
"""Beyond the widest, longest-worded and deepest models by far; what is derived from such numbers is still small."""
_LONGEST = 1 << 31
_MOST_LAYERS = 10_000

_COUNTS = dict.fromkeys(
    (
        *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
        *("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step"),
        *("no_rope_layer_interval", "sliding_window_pattern"),
    ),
    (1, _MOST),
) | {
    "num_hidden_layers": (1, _MOST_LAYERS),
    "vocab_size": (1, _LONGEST),
    "max_position_embeddings": (1, _LONGEST),
    "original_max_position_embeddings": (1, _LONGEST),
    "max_window_layers": (0, _MOST_LAYERS),
    "sliding_window": (0, _LONGEST),
    "shared_expert_intermediate_size": (0, _MOST),
}
_NUMBERS = {
    **dict.fromkeys(("rope_theta", "rope_local_base_freq", "query_pre_attn_scalar", "factor"), (1e-9, 1e30)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "logits_scaling"), (1e-9, 1e9)),
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "attention_multiplier"), (-1e9, 1e9)),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "norm_epsilon"), (0.0, 1.0)),
    **dict.fromkeys(("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor"), (1e-9, 1e9)),
    **dict.fromkeys(("mscale", "mscale_all_dim"), (-1e9, 1e9)),
    "partial_rotary_factor": (1e-9, 1.0),
}
_SWITCHES = ("tie_word_embeddings", "use_sliding_window", "norm_topk_prob", "use_parallel_residual", "qk_layernorm", "truncate")
_WORDS = ("hidden_act", "hidden_activation", "rope_type", "type")
_PER_LAYER = ("layer_types", "no_rope_layers")
_GROUPS = ("rope_parameters", "rope_scaling", "quantization_config")
_TYPES = ("full_attention", "sliding_attention")


def checked(config: Config) -> Config:
    """The config, whole numbers as ints.

    >>> checked({"num_hidden_layers": 2.0, "layer_types": ["full_attention"] * 2, "remark": -1})["num_hidden_layers"]
    2
    >>> checked({"num_hidden_layers": -1})
    Traceback (most recent call last):
    ValueError: model: config.json says num_hidden_layers -1, which is no whole number from 1 to 10000; save the model again
    """
    found = {name: _field(name, value) for name, value in config.items()}
    for name in _PER_LAYER:
        if found.get(name) and len(found[name]) != found.get("num_hidden_layers"):
            raise ValueError(_line(name, f"for {len(found[name])} layers", f"one for each of the {found.get('num_hidden_layers')}"))
    return found


def _field(name: str, value: Any) -> Any:
    """One field's value; null is always allowed, and means that nothing is said."""
    if value is None:
        return None
    if name in _COUNTS:
        least, most = _COUNTS[name]
        return _whole(name, value, least, most)
    if name in _NUMBERS:
        low, high = _NUMBERS[name]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return _kept(name, value, is_number and low <= value <= high, f"number from {low:g} to {high:g}")
    if name in _SWITCHES:
        return _kept(name, value, isinstance(value, bool), "true or false")
    if name in _WORDS:
        return _kept(name, value, isinstance(value, str), "text")
    if name == "eos_token_id":
        return [_whole(name, token, -1, _LONGEST) for token in value] if isinstance(value, list) else _whole(name, value, -1, _LONGEST)
    if name in _GROUPS:
        return _group(name, value)
    if name in _LISTS:
        kind, fits = _LISTS[name]
        return _kept(name, value, isinstance(value, list) and all(map(fits, value)), f"list of {kind}")
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 < value < 1e30


_LISTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "architectures": ("texts", _is_text),
    "layer_types": ("texts", _is_text),
    "no_rope_layers": ("zeros and ones", lambda each: each in (0, 1)),
    "mlp_only_layers": ("whole numbers", lambda each: isinstance(each, int)),
    "short_factor": ("positive numbers", _is_positive),
    "long_factor": ("positive numbers", _is_positive),
}


def _group(name: str, value: Any) -> Any:
    """An object's own fields; a rope's may be one object per type of layer."""
    _kept(name, value, isinstance(value, dict), "object")
    if name == "quantization_config":
        return value
    return {key: _by_type(key, each) if key in _TYPES else _field(key, each) for key, each in value.items()}


def _by_type(name: str, value: Any) -> Any:
    _kept(name, value, value is None or isinstance(value, dict), "object")
    return value and {key: _field(key, each) for key, each in value.items()}


def _whole(name: str, value: Any, least: int, most: int) -> int:
    whole = (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer())
    return int(_kept(name, value, whole and least <= value <= most, f"whole number from {least} to {most}"))


def _kept(name: str, value: Any, fits: bool, kind: str) -> Any:
    if not fits:
        raise ValueError(_line(name, f"{value!r}"[:60], kind))
    return value


def _line(name: str, what: str, kind: str) -> str:
    return f"model: config.json says {name} {what}, which is no {kind}; save the model again"
