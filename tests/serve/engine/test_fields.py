"""Fields of a config.json: whatever stands there, a folder loads and runs, or is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.families import FAMILIES
from serve.engine.fields import checked
from serve.engine.request import Sampling

Folder = Callable[[dict[str, Any]], Path]


@pytest.fixture(scope="module")
def folder(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The tiny model with other fields in its config.json; `...` takes one out."""
    place = tmp_path_factory.mktemp("odd")
    for file in tiny_model_dir.iterdir():
        if file.name not in ("config.json", "generation_config.json"):
            (place / file.name).symlink_to(file)
    plain = json.loads((tiny_model_dir / "config.json").read_text())

    def made(changes: dict[str, Any]) -> Path:
        (place / "config.json").write_text(json.dumps({name: v for name, v in (plain | changes).items() if v is not ...}))
        return place

    return made


def line(place: Path) -> str:
    with pytest.raises(ValueError) as caught:
        Engine.load(place, EngineConfig(num_blocks=8))
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("num_hidden_layers", -1, "num_hidden_layers -1, which is no whole number from 1 to 10000"),
        ("num_hidden_layers", 3, "lacks the tensor model.layers.2"),
        ("num_hidden_layers", 10**9, "num_hidden_layers 1000000000, which is no"),
        ("hidden_size", 65, "where its config.json asks for"),
        ("vocab_size", "x", "vocab_size 'x', which is no whole number"),
        ("vocab_size", True, "vocab_size True, which is no whole number"),
        ("num_key_value_heads", 3, "4 heads for 3 key-value heads"),
        ("head_dim", 15, "15 dimensions of a head to turn by pairs"),
        ("rms_norm_eps", "tiny", "rms_norm_eps 'tiny', which is no number from 0 to 1"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps nan, which is no number"),
        ("rope_parameters", 5, "rope_parameters 5, which is no object"),
        ("rope_parameters", {"rope_type": 5}, "rope_type 5, which is no text"),
        ("rope_parameters", {"full_attention": 5}, "full_attention 5, which is no object"),
        ("rope_parameters", {"full_attention": {"factor": "x"}}, "factor 'x', which is no number"),
        ("rope_scaling", {"rope_type": "longrope", "short_factor": [10**400]}, "which is no list of positive numbers"),
        ("rope_parameters", {"rope_theta": 0}, "rope_theta 0, which is no number"),
        ("rope_parameters", {"rope_type": "linear", "factor": "2"}, "factor '2', which is no number"),
        (
            "rope_parameters",
            {"rope_type": "longrope", "short_factor": [1e-45] * 8, "long_factor": [1.0] * 8, "original_max_position_embeddings": 64},
            "make no rotary embedding",
        ),
        (
            "rope_parameters",
            {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0], "original_max_position_embeddings": 64},
            "1 factors for 16 dimensions",
        ),
        ("layer_types", ["full_attention"], "layer_types for 1 layers, which is no one for each of the 2"),
        ("architectures", "LlamaForCausalLM", "architectures 'LlamaForCausalLM', which is no list of texts"),
        ("architectures", [5], "architectures [5], which is no list"),
        ("hidden_act", ["silu"], "hidden_act ['silu'], which is no text"),
        ("eos_token_id", "</s>", "eos_token_id '</s>', which is no whole number"),
        ("max_position_embeddings", 0, "max_position_embeddings 0, which is no whole number"),
        ("quantization_config", 7, "quantization_config 7, which is no object"),
        (
            "quantization_config",
            {"quant_method": "compressed-tensors", "config_groups": {"a": 1}},
            "quantization_config that cannot be read",
        ),
        ("quantization_config", {"quant_method": "compressed-tensors", "ignore": ["re:("]}, "quantization_config that cannot be read"),
    ],
)
def test_an_odd_value_is_one_line(folder: Folder, name: str, value: Any, expected: str) -> None:
    message = line(folder({name: value}))
    assert expected in message
    assert message.startswith("model: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"architectures": ["MixtralForCausalLM"], "num_local_experts": 2, "num_experts_per_tok": 3}, "chooses 3 of 2 experts"),
        ({"hidden_size": 2, "head_dim": None}, "divides hidden_size 2 among 4 heads"),
    ],
)
def test_numbers_that_do_not_go_together_are_one_line(folder: Folder, changes: dict[str, Any], expected: str) -> None:
    assert expected in line(folder(changes))


@pytest.mark.parametrize("changes", [{"n_head": 0}, {"n_embd": "x"}, {"vocab_size": []}, {"n_layer": -1}, {"eos_token_id": "</s>"}])
def test_a_guests_odd_values_are_one_line_too(folder: Folder, changes: dict[str, Any]) -> None:
    assert "is a GPT2LMHeadModel, which neither" in line(folder({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"} | changes))


def test_whole_numbers_may_be_written_with_a_point_and_null_says_nothing() -> None:
    assert checked({"hidden_size": 64.0, "num_key_value_heads": None}) == {"hidden_size": 64, "num_key_value_heads": None}
    assert type(checked({"hidden_size": 64.0})["hidden_size"]) is int


def test_end_tokens_outside_the_vocabulary_are_never_drawn(folder: Folder) -> None:
    engine = Engine.load(folder({"eos_token_id": [0, 400, -1]}), EngineConfig(num_blocks=8))
    assert engine.shape.eos_token_ids == (0,)
    engine.generate([[5, 6]], Sampling(max_tokens=4, min_tokens=3))


NAMES = (
    *("architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_parameters", "rope_scaling", "layer_types", "hidden_act"),
    *("sliding_window", "use_sliding_window", "max_window_layers", "tie_word_embeddings", "eos_token_id", "partial_rotary_factor", "dtype"),
    *("original_max_position_embeddings", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "num_experts"),
    *("num_local_experts", "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step", "mlp_only_layers", "no_rope_layers"),
    *("no_rope_layer_interval", "embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"),
    *("quantization_config", "norm_epsilon", "layer_norm_eps", "sliding_window_pattern", "rope_local_base_freq", "norm_topk_prob"),
)
ROPE_NAMES = (
    *("rope_type", "rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "beta_fast"),
    *("beta_slow", "attention_factor", "mscale", "mscale_all_dim", "short_factor", "long_factor", "full_attention", "truncate"),
)
small = st.sampled_from([0, 1, 2, 3, 4, 16, 64, 128, 400, -1, 0.5, 1.0, 2.0, 1e4, 1e308, float("nan"), float("inf"), 2**31, 10**30])
plain = st.one_of(small, st.sampled_from([None, True, False, "", "x", "linear", "yarn", "llama3", "longrope", "dynamic", "silu", "gelu"]))
values = st.recursive(plain, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(ROPE_NAMES), inner)))
ropes = st.dictionaries(st.sampled_from(ROPE_NAMES), values, max_size=6)
changes = st.dictionaries(st.sampled_from(NAMES), st.one_of(values, st.just(...)), max_size=3)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    changes=changes, rope=st.none() | ropes, family=st.sampled_from(["Llama", "Llama", *(n.removesuffix("ForCausalLM") for n in FAMILIES)])
)
def test_whatever_a_config_says_a_folder_runs_or_is_refused(
    folder: Folder, changes: dict[str, Any], rope: dict[str, Any] | None, family: str
) -> None:
    given = {"architectures": [f"{family}ForCausalLM"]} | ({} if rope is None else {"rope_parameters": rope}) | changes
    given["eos_token_id"] = given.get("eos_token_id", 0)
    try:
        engine = Engine.load(folder(given), EngineConfig(num_blocks=8))
    except ValueError as error:
        refused = str(error)
    else:
        refused = ""
        assert engine.generate([[5, 6, 7]], Sampling(temperature=0, max_tokens=3, min_tokens=1))[0].tokens
    assert "\n" not in refused
    assert len(refused) < 1000
