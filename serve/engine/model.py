"""A lean decoder for the Llama-like families: Llama, Mistral, Qwen2, Qwen3.

Promise: the logits of transformers' own modules for these folders (float32: within 1e-4), from flat batches of tokens, with attention
left to the caller. Price per layer: four matrix products (query-key-value and gate-up are fused) and about ten small operators.
Differences between the families are in the folder: a bias or a query/key norm is used where its tensor exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, rms_norm, silu

from serve.engine.linear import Dense, Linear
from serve.engine.weights import Weights

__all__ = ["FAMILIES", "Attend", "Model", "Shape"]

FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")

Attend = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, q [T, heads, head_dim], kv [2, kv_heads, T, head_dim]) -> [T, heads * head_dim]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What config.json says about the decoder."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_length: int
    norm_eps: float
    windows: tuple[int | None, ...]
    """Per layer: how many keys a query sees, None for all."""
    eos_token_ids: tuple[int, ...]
    inverse_frequencies: tuple[float, ...]
    """Of the rotary embedding, head_dim / 2 of them, scaling applied."""

    @classmethod
    def of(cls, config: dict[str, Any], where: str) -> Shape:
        """Read a config.json; ValueError for what this decoder does not do."""
        architecture = (config.get("architectures") or ["?"])[0]
        if architecture not in FAMILIES:
            raise ValueError(f"model: {where} is a {architecture}; the engine runs {', '.join(FAMILIES)}")
        if config.get("hidden_act", "silu") != "silu":
            raise ValueError(f"model: {where} uses the activation {config['hidden_act']!r}; the engine runs silu")
        heads = int(config["num_attention_heads"])
        head_dim = int(config.get("head_dim") or (128 if architecture.startswith("Qwen3") else config["hidden_size"] // heads))
        eos = config.get("eos_token_id")
        max_length = int(config.get("max_position_embeddings", 2048))
        return cls(
            num_layers=int(config["num_hidden_layers"]),
            num_heads=heads,
            num_kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=head_dim,
            vocab_size=int(config["vocab_size"]),
            max_length=max_length,
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            windows=_windows(config, architecture),
            eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list) else (int(eos),),
            inverse_frequencies=tuple(_inverse_frequencies(config, head_dim, where)),
        )


def _windows(config: dict[str, Any], architecture: str) -> tuple[int | None, ...]:
    """Mistral slides everywhere when it has a window; Qwen where `layer_types` or `max_window_layers` says."""
    layers, window = int(config["num_hidden_layers"]), config.get("sliding_window")
    if architecture.startswith("Llama") or window is None:
        return (None,) * layers
    if architecture.startswith("Mistral"):
        return (int(window),) * layers
    if not config.get("use_sliding_window", False):
        return (None,) * layers
    types = config.get("layer_types") or [
        "sliding_attention" if i >= config.get("max_window_layers", 28) else "full" for i in range(layers)
    ]
    return tuple(int(window) if kind == "sliding_attention" else None for kind in types)


def _inverse_frequencies(config: dict[str, Any], head_dim: int, where: str) -> list[float]:
    """Rotary frequencies, plain, linearly scaled, or scaled as Llama 3.1 does (low ones by `factor`, high ones not, a ramp between)."""
    rope = {"rope_theta": config.get("rope_theta", 10000.0), **(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    plain = [float(rope["rope_theta"]) ** (-i / head_dim) for i in range(0, head_dim, 2)]
    if kind == "default":
        return plain
    if kind == "linear":
        return [f / rope["factor"] for f in plain]
    if kind != "llama3":
        raise ValueError(f"model: {where} scales its rotary embedding by {kind!r}; the engine runs default, linear and llama3")
    low, high, context = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]

    def scaled(f: float) -> float:
        share = min(max((context * f / (2 * math.pi) - low) / (high - low), 0.0), 1.0)
        return (1 - share) * f / rope["factor"] + share * f

    return [scaled(f) for f in plain]


class Model:
    """The decoder: weights, and `forward`."""

    def __init__(self, shape: Shape, weights: Weights, dtype: torch.dtype, device: torch.device, max_length: int, tied: bool) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self._embedding = weights.tensor("model.embed_tokens.weight")
        self._layers = [_Layer(shape, weights, i) for i in range(shape.num_layers)]
        self._norm = weights.tensor("model.norm.weight")
        stored = not tied and ("lm_head.weight" in weights or "lm_head.weight_packed" in weights)
        self._head = weights.linear("lm_head") if stored else Dense(self._embedding)
        self._rotation = _rotation(shape, max_length, dtype, device)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        """Logits [R, vocab] after tokens [T] at positions [T], of the given `rows` [R] (None: all), in the model's type."""
        x = embedding(tokens, self._embedding)
        cos, sin = self._rotation.index_select(1, positions).unbind()
        for layer in self._layers:
            x = layer(x, cos, sin, attend)
        if rows is not None:
            x = x.index_select(0, rows)
        return self._head(rms_norm(x, x.shape[-1:], self._norm, self.shape.norm_eps))


class _Layer:
    """Pre-norm attention and gated MLP, each added to the stream."""

    def __init__(self, shape: Shape, weights: Weights, index: int) -> None:
        self._shape, self._index = shape, index
        name = f"model.layers.{index}"
        self._qkv: Linear = weights.linear(*(f"{name}.self_attn.{p}_proj" for p in "qkv"))
        self._out: Linear = weights.linear(f"{name}.self_attn.o_proj")
        self._gate_up: Linear = weights.linear(f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj")
        self._down: Linear = weights.linear(f"{name}.mlp.down_proj")
        self._before_attention = weights.tensor(f"{name}.input_layernorm.weight")
        self._before_mlp = weights.tensor(f"{name}.post_attention_layernorm.weight")
        q_norm, k_norm = (weights.optional(f"{name}.self_attn.{p}_norm.weight") for p in "qk")
        self._qk_norm = None  # [heads + kv_heads, head_dim]
        if q_norm is not None and k_norm is not None:
            self._qk_norm = torch.cat([q_norm.expand(shape.num_heads, -1), k_norm.expand(shape.num_kv_heads, -1)])

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        s = self._shape
        size = x.shape[-1:]
        qkv = self._qkv(rms_norm(x, size, self._before_attention, s.norm_eps)).view(len(x), s.num_heads + 2 * s.num_kv_heads, s.head_dim)
        qk = qkv[:, : s.num_heads + s.num_kv_heads]
        if self._qk_norm is not None:
            qk.copy_(rms_norm(qk, (s.head_dim,), None, s.norm_eps) * self._qk_norm)
        turned = qk.roll(s.head_dim // 2, -1)
        qk.mul_(cos).addcmul_(turned, sin)
        kv = qkv[:, s.num_heads :].view(len(x), 2, s.num_kv_heads, s.head_dim).permute(1, 2, 0, 3)
        x = x + self._out(attend(self._index, qkv[:, : s.num_heads], kv))
        gate, up = self._gate_up(rms_norm(x, size, self._before_mlp, s.norm_eps)).chunk(2, -1)
        return x + self._down(silu(gate).mul_(up))


def _rotation(shape: Shape, max_length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[2, max_length, 1, head_dim]: cosines, and sines whose first half is negated (it multiplies the halves swapped)."""
    frequencies = torch.tensor(shape.inverse_frequencies, dtype=torch.float32)
    angles = torch.outer(torch.arange(max_length, dtype=torch.float32), frequencies)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)])[:, :, None].to(device, dtype)
