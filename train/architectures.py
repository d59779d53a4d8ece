"""Named recipes: a shape (the `[model]` table of a plan) -> a transformers configuration -> a model with fresh weights.

Promise: the model has exactly the parameters that train/plan/shapes.py counts, and the same seed gives the same weights on any
machine with the same torch. Price: one initialisation. Source: the Llama architecture as transformers builds it (grouped-query
attention, rotary positions, RMS norms, SwiGLU); output projections of residual branches start smaller with depth, after GPT-2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel

from train.plan.shapes import ModelShape

__all__ = ["RECIPES", "SpecialTokens", "make_config", "make_model"]


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


def _dense(shape: ModelShape, tokens: SpecialTokens) -> PretrainedConfig:
    return LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_length,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=shape.tie_embeddings,
        initializer_range=0.02 if shape.hidden_size >= 1024 else round(0.64 / math.sqrt(shape.hidden_size), 4),
        bos_token_id=tokens.end,
        eos_token_id=tokens.end,
        pad_token_id=tokens.pad,
    )


RECIPES: dict[str, Callable[[ModelShape, SpecialTokens], PretrainedConfig]] = {"dense": _dense}
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
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.mul_(1.0 / math.sqrt(2 * num_layers))
