"""Named recipes: a shape (the `[model]` table of a plan) -> a transformers configuration -> a model with fresh weights.

Promise: the model has exactly the parameters that train/plan/shapes.py counts, and the same seed gives the same weights on any
machine with the same torch; every class runs on a CPU and on a GPU without kernels of its own, and writes a folder that transformers
loads. Price: one initialisation. Source: transformers' own classes, one family per recipe; output projections of residual branches
start smaller with depth, after GPT-2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    LlamaConfig,
    Mamba2Config,
    MistralConfig,
    MixtralConfig,
    MptConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3_5TextConfig,
)

from train.plan.layers import CONVOLUTION
from train.plan.shapes import ModelShape

__all__ = ["RECIPES", "SpecialTokens", "make_config", "make_model"]

_CHUNK = 64  # tokens that Mamba-2's scan takes at once: it builds a chunk's own square, so longer chunks cost more than they save
_ROUTER_BALANCE = 0.01  # weight of the loss that keeps experts evenly used, as in Switch Transformers (arXiv 2101.03961)
_RESIDUAL_OUTPUTS = ("o_proj.weight", "down_proj.weight", "out_proj.weight", "experts.down_proj")


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecialTokens:
    """What a model's configuration records of its tokenizer."""

    end: int = 0
    """Id that ends a document: both first and last token of one."""
    pad: int | None = None
    """Id that fills up batches."""

    @classmethod
    def of(cls, tokenizer: Any) -> SpecialTokens:
        """Those of a transformers tokenizer; ValueError if it has no end-of-text token."""
        if tokenizer.eos_token_id is None:
            raise ValueError("tokenizer: has no end-of-text token (eos_token); `sterna tokenize` makes one that has")
        return cls(end=int(tokenizer.eos_token_id), pad=tokenizer.pad_token_id)


def _common(shape: ModelShape, tokens: SpecialTokens) -> dict[str, Any]:
    """What every configuration calls by the same name."""
    return {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "tie_word_embeddings": shape.tie_embeddings,
        "initializer_range": 0.02 if shape.hidden_size >= 1024 else round(0.64 / math.sqrt(shape.hidden_size), 4),
        "bos_token_id": tokens.end,
        "eos_token_id": tokens.end,
        "pad_token_id": tokens.pad,
    }


def _rotary_attention(shape: ModelShape, **rope: Any) -> dict[str, Any]:
    """Grouped-query attention with rotary positions, and the width of what follows it."""
    return {
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_length,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta, **rope},
    }


def _dense(shape: ModelShape, tokens: SpecialTokens) -> PretrainedConfig:
    return LlamaConfig(**_common(shape, tokens), **_rotary_attention(shape))


def _sliding(shape: ModelShape, tokens: SpecialTokens) -> PretrainedConfig:
    return MistralConfig(**_common(shape, tokens), **_rotary_attention(shape), sliding_window=shape.window)


def _alibi(shape: ModelShape, tokens: SpecialTokens) -> PretrainedConfig:
    common = _common(shape, tokens)
    names = {"d_model": "hidden_size", "n_layers": "num_hidden_layers"}
    common |= {name: common.pop(usual) for name, usual in names.items()}
    lengths = {"max_seq_len": shape.max_length, "max_position_embeddings": shape.max_length}  # the second is where others look for it
    return MptConfig(**common, **lengths, n_heads=shape.num_heads, no_bias=True)


def _moe(shape: ModelShape, tokens: SpecialTokens) -> PretrainedConfig:
    return MixtralConfig(
        **_common(shape, tokens),
        **_rotary_attention(shape),
        num_local_experts=shape.num_experts,
        num_experts_per_tok=shape.experts_per_token,
        router_aux_loss_coef=_ROUTER_BALANCE,
        sliding_window=None,
    )


def _ssm(shape: ModelShape, tokens: SpecialTokens) -> PretrainedConfig:
    return Mamba2Config(
        **_common(shape, tokens),
        num_heads=shape.state_heads,
        head_dim=shape.state_head_dim,
        state_size=shape.state_size,
        expand=2,
        n_groups=1,
        conv_kernel=CONVOLUTION,
        chunk_size=_CHUNK,
    )


def _hybrid(shape: ModelShape, tokens: SpecialTokens) -> PretrainedConfig:
    attention = _rotary_attention(shape)
    del attention["head_dim"]  # Bamba's heads make up the width
    return BambaConfig(
        **_common(shape, tokens),
        **attention,
        attn_layer_indices=[layer for layer in range(shape.num_layers) if shape.attends(layer)],
        mamba_n_heads=shape.state_heads,
        mamba_d_head=shape.state_head_dim,
        mamba_d_state=shape.state_size,
        mamba_n_groups=1,
        mamba_d_conv=CONVOLUTION,
        mamba_expand=2,
        mamba_chunk_size=_CHUNK,
    )


def _linear(shape: ModelShape, tokens: SpecialTokens) -> PretrainedConfig:
    return Qwen3_5TextConfig(
        **_common(shape, tokens),
        **_rotary_attention(shape, partial_rotary_factor=0.5),
        layer_types=["full_attention" if shape.attends(layer) else "linear_attention" for layer in range(shape.num_layers)],
        linear_num_key_heads=shape.state_heads,
        linear_num_value_heads=shape.state_heads,
        linear_key_head_dim=shape.state_size,
        linear_value_head_dim=shape.state_head_dim,
        linear_conv_kernel_dim=CONVOLUTION,
    )


RECIPES: dict[str, Callable[[ModelShape, SpecialTokens], PretrainedConfig]] = {
    "dense": _dense,
    "sliding": _sliding,
    "alibi": _alibi,
    "moe": _moe,
    "ssm": _ssm,
    "hybrid": _hybrid,
    "linear": _linear,
}
"""Architecture name -> how its configuration is made from a shape."""


def make_config(shape: ModelShape | Mapping[str, Any], tokens: SpecialTokens | None = None) -> PretrainedConfig:
    """The transformers configuration of a shape, or of a plan's `[model]` table.

    Raises ValueError for a table that is no shape, and for special tokens outside the vocabulary.
    """
    shape = shape if isinstance(shape, ModelShape) else ModelShape.from_table(shape)
    tokens = tokens or SpecialTokens()
    for name, token in (("end", tokens.end), ("pad", tokens.pad)):
        if token is not None and not 0 <= token < shape.vocab_size:
            raise ValueError(f"tokenizer: its {name} token has id {token}, outside the plan's vocabulary of {shape.vocab_size}; plan again")
    return RECIPES[shape.architecture](shape, tokens)


def make_model(config: PretrainedConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model with weights drawn from `seed` (drawn in float32, then rounded to `dtype`); the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _shrink_residual_outputs(model, config.num_hidden_layers)
    return model.to(dtype)


@torch.no_grad()
def _shrink_residual_outputs(model: PreTrainedModel, num_layers: int) -> None:
    """Scale what each layer adds to the residual stream by 1/√(2·layers), so that the stream's variance does not grow with depth."""
    for name, weight in model.named_parameters():
        if name.endswith(_RESIDUAL_OUTPUTS):
            weight.mul_(1.0 / math.sqrt(2 * num_layers))
