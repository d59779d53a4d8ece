"""The lean decoder: one forward for every family in `families.py`, from flat batches of tokens, attention left to the caller.

Promise: the logits of transformers' own modules (float32: within 1e-4). What differs between families is data: `Shape` says which
numbers, `Parts` which tensors. Price per layer of a Llama: four matrix products (query-key-value and gate-up are fused) and about ten
small operators; an oddity costs the families that have it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, rms_norm, silu

from serve.engine.experts import Mixture
from serve.engine.linear import Dense, Linear, Rows
from serve.engine.parts import Layer, Mlp, parts_of
from serve.engine.rope import Rotation
from serve.engine.shape import Shape
from serve.engine.weights import Weights

__all__ = ["Adapters", "Attend", "Model", "Shape"]

Attend = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, q [T, heads, head_dim], kv [2, kv_heads, T, head_dim]) -> [T, heads * head_dim]."""
Adapters = Callable[[int, str, Tensor, Tensor], None]
"""(layer, "qkv" | "out" | "gate_up" | "down", x [T, K], y [T, N]): adds to y, in place, what low-rank adapters add to that product."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": silu, "gelu": gelu, "gelu_tanh": partial(gelu, approximate="tanh")}


class Model:
    """The decoder: weights, and `forward`."""

    def __init__(self, shape: Shape, weights: Weights, dtype: torch.dtype, device: torch.device, max_length: int) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        parts = parts_of(shape, weights)
        embedding = weights.stored(parts.embedding)
        self._embedding = Rows(embedding, dtype)
        self._layers = weights.side_by_side(partial(_Layer, shape, weights), parts.layers)
        self._norm = _Norm(shape, weights, parts.norm)
        # our own kernels want the matrix in their own layout
        shared = parts.head is None and not weights.all_native and weights.is_plain(parts.embedding)
        self._head: Linear = Dense(embedding.weight) if shared else weights.linear(parts.head or parts.embedding)
        self._rotaries = [_Rotary(Rotation(rope, max_length, device), dtype) for rope in shape.ropes]

    @torch.inference_mode()
    def forward(
        self, tokens: Tensor, positions: Tensor, attend: Attend, rows: Tensor | None = None, adapters: Adapters | None = None
    ) -> Tensor:
        """Logits [R, vocab] after tokens [T] at positions [T], of `rows` [R] (None: all), in float32 (float64 if the model is)."""
        x = self.hidden(tokens, positions, attend, adapters)
        s, logits = self.shape, self._head(x if rows is None else x.index_select(0, rows))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if s.logit_multiplier != 1:
            logits = logits.mul_(s.logit_multiplier)
        if s.logit_soft_cap is not None:
            logits = logits.div_(s.logit_soft_cap).tanh_().mul_(s.logit_soft_cap)
        return logits

    @torch.inference_mode()
    def hidden(self, tokens: Tensor, positions: Tensor, attend: Attend, adapters: Adapters | None = None) -> Tensor:
        """[T, hidden]: what the head reads, after the last norm."""
        x = self._embedding(tokens)
        if self.shape.embedding_multiplier != 1:
            x = x * torch.tensor(self.shape.embedding_multiplier, dtype=x.dtype)  # rounded to the model's type, as transformers does
        turns = [rotary.at(positions) for rotary in self._rotaries]
        for i, layer in enumerate(self._layers):
            rope = self.shape.rope_of[i]
            x = layer(x, None if rope is None else turns[rope], attend, adapters)
        return self._norm(x)


class _Layer:
    """Attention and MLP, each added to the stream, with the norms the family has."""

    def __init__(self, shape: Shape, weights: Weights, index: int, part: Layer) -> None:
        norm = partial(_optional_norm, shape, weights)
        self._shape, self._index = shape, index
        self._qkv: Linear = weights.linear(*part.qkv)
        self._out: Linear = weights.linear(*part.out)
        self._before_attention, self._after_attention = norm(part.before_attention), norm(part.after_attention)
        self._before_mlp, self._after_mlp = norm(part.before_mlp), norm(part.after_mlp)
        self._qk_norm = None if shape.qk_norm is None else _QkNorm(shape, weights, part)
        mlp = None if part.mlp is None else _Mlp(shape, weights, part.mlp, index)
        self._mlp = mlp if part.router is None else Mixture(shape, weights, part, partial(_Mlp, shape, weights, index=index), mlp)

    def __call__(self, x: Tensor, turn: tuple[Tensor, Tensor] | None, attend: Attend, adapters: Adapters | None) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        normed = x if self._before_attention is None else self._before_attention(x)
        y = self._attention(normed, turn, attend, adapters)
        if self._shape.parallel:
            return x + y + self._mlp(normed, adapters)
        x = self._added(x, y, self._after_attention)
        y = self._mlp(x if self._before_mlp is None else self._before_mlp(x), adapters)
        return self._added(x, y, self._after_mlp)

    def _attention(self, x: Tensor, turn: tuple[Tensor, Tensor] | None, attend: Attend, adapters: Adapters | None) -> Tensor:
        s = self._shape
        qkv = self._qkv(x)
        if adapters is not None:
            adapters(self._index, "qkv", x, qkv)
        qkv = qkv.view(len(x), s.num_heads + 2 * s.num_kv_heads, s.head_dim)
        qk = qkv[:, : s.num_heads + s.num_kv_heads]
        if self._qk_norm is not None:
            self._qk_norm(qk)
        if turn is not None:
            cos, sin = turn
            turned = qk[..., : cos.shape[-1]]
            swapped = turned.roll(cos.shape[-1] // 2, -1)
            turned.mul_(cos).addcmul_(swapped, sin)
        kv = qkv[:, s.num_heads :].view(len(x), 2, s.num_kv_heads, s.head_dim).permute(1, 2, 0, 3)
        seen = attend(self._index, qkv[:, : s.num_heads], kv)
        y = self._out(seen)
        if adapters is not None:
            adapters(self._index, "out", seen, y)
        return y

    def _added(self, x: Tensor, y: Tensor, norm: _Norm | None) -> Tensor:
        y = y if norm is None else norm(y)
        factor = self._shape.residual_multiplier
        return x + y if factor == 1 else x + y * factor  # add's alpha rounds otherwise at the end of a row than within


class _Mlp:
    """down(activation(gate) * up), or down(activation(up))."""

    def __init__(self, shape: Shape, weights: Weights, part: Mlp, index: int) -> None:
        self._index, self._gated, self._activation = index, shape.gated, ACTIVATIONS[shape.activation]
        self._gate_up: Linear = weights.linear(*part.gate_up)
        self._down: Linear = weights.linear(*part.down)

    def __call__(self, x: Tensor, adapters: Adapters | None = None) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        y = self._gate_up(x)
        if adapters is not None:
            adapters(self._index, "gate_up", x, y)
        if self._gated:
            gate, up = y.chunk(2, -1)
            inner = self._activation(gate).mul_(up)
        else:
            inner = self._activation(y)
        y = self._down(inner)
        if adapters is not None:
            adapters(self._index, "down", inner, y)
        return y


class _Norm:
    """RMS or layer norm. Weights with an offset (Gemma) stay in float32: 1 + w would lose half of w's bits in bfloat16."""

    def __init__(self, shape: Shape, weights: Weights, module: str) -> None:
        self._weight, self._bias = weights.norm(module, shape.norm_offset)
        self._rms, self._eps = shape.norm == "rms", shape.norm_eps

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., N], normed over N."""
        wide = x.to(self._weight.dtype)
        if self._rms:
            return rms_norm(wide, wide.shape[-1:], self._weight, self._eps).to(x.dtype)
        return layer_norm(wide, wide.shape[-1:], self._weight, self._bias, self._eps).to(x.dtype)


def _optional_norm(shape: Shape, weights: Weights, module: str | None) -> _Norm | None:
    return None if module is None else _Norm(shape, weights, module)


class _QkNorm:
    """Norms queries and keys where they lie: head by head (in one go), or all of a token's heads together."""

    def __init__(self, shape: Shape, weights: Weights, part: Layer) -> None:
        assert part.q_norm is not None
        assert part.k_norm is not None
        self._heads, self._eps = shape.num_heads, shape.norm_eps
        self._whole = (_Norm(shape, weights, part.q_norm), _Norm(shape, weights, part.k_norm)) if shape.qk_norm == "whole" else None
        if self._whole is None:
            (q, _), (k, _) = weights.norm(part.q_norm, shape.norm_offset), weights.norm(part.k_norm, shape.norm_offset)
            self._weight = torch.cat([q.expand(shape.num_heads, -1), k.expand(shape.num_kv_heads, -1)])  # [heads + kv_heads, head_dim]

    def __call__(self, qk: Tensor) -> None:
        """qk [T, heads + kv_heads, head_dim], in place."""
        if self._whole is None:
            qk.copy_(rms_norm(qk, qk.shape[-1:], None, self._eps) * self._weight)
            return
        for norm, heads in zip(self._whole, (slice(None, self._heads), slice(self._heads, None)), strict=True):
            part = qk[:, heads]
            part.copy_(norm(part.flatten(1)).view(part.shape))


class _Rotary:
    """A rotation in the form the layers use: [2, positions, 1, dim], the sines' first half negated (they multiply the halves swapped)."""

    def __init__(self, rotation: Rotation, dtype: torch.dtype) -> None:
        self._rotation, self._dtype = rotation, dtype
        self._on_cpu = rotation.table.device.type == "cpu"
        self._table = self._made(rotation.table if self._on_cpu else rotation.upto(rotation.max_length))

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [T, 1, dim]."""
        if self._on_cpu and (length := int(positions.max()) + 1) > self._table.shape[1]:  # a GPU has all, as asking it would wait for it
            self._table = self._made(self._rotation.upto(length))
        cos, sin = self._table.index_select(1, positions).unbind()
        return cos, sin

    def _made(self, table: Tensor) -> Tensor:
        cos, sin = table.unbind()
        return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)])[:, :, None].to(self._dtype)
