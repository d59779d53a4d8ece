"""The layers that the recipes are built of, as numbers: weights, multiplications per token, what serving keeps.

Promise: weights are exact for the transformers classes that train/architectures.py names (tests hold every recipe to its model); a
recurrence counts as it is written, one token at a time, whatever a chunked kernel does instead. Price: none. Sources: grouped-query
attention (arXiv 2305.13245), ALiBi (2108.12409), sliding windows (2310.06825), Mixtral (2401.04088), Mamba-2 (2405.21060),
Bamba and Jamba for hybrids (2403.19887), gated DeltaNet (2412.06464).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.plan.shapes import ModelShape

__all__ = ["CONVOLUTION", "Part", "layer_parts", "mean_span"]

CONVOLUTION = 4
"""Tokens that the short convolution in front of a recurrence sees: Mamba-2's and DeltaNet's own default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A token mixer or a feed-forward layer, its norm included."""

    matrices: int = 0
    """Weights of matrices that every token is multiplied with."""
    idle: int = 0
    """Weights of the experts that a token is not sent to."""
    vectors: int = 0
    """All other weights: norms, convolutions, decays."""
    attends: int = 0
    """Query heads times their width; 0 where nothing attends."""
    span: int | None = None
    """Tokens that a query sees at most, itself included; None: all before it."""
    kept_per_token: int = 0
    """Keys and values that serving keeps of each token in the span."""
    state: int = 0
    """Values that serving keeps of a sequence, however long it is."""
    recurrence: int = 0
    """FLOPs of a token's way through the recurrence and its convolution."""


def layer_parts(shape: ModelShape) -> Iterator[Part]:
    """Every mixer and feed-forward layer of a model, from the first to the last."""
    for index in range(shape.num_layers):
        yield _mixer(shape, index)
        if shape.architecture != "ssm":  # Mamba's layer is both in one
            yield _feed_forward(shape)


def mean_span(span: int | None, sequence_length: int) -> float:
    """Tokens that a causal query sees on average over a sequence.

    >>> mean_span(None, 4), mean_span(2, 4)
    (2.5, 1.75)
    """
    window = min(span or sequence_length, sequence_length)
    return window - window * (window - 1) / 2 / sequence_length


def _mixer(shape: ModelShape, index: int) -> Part:
    if shape.architecture == "ssm" or (shape.architecture == "hybrid" and not shape.attends(index)):
        return _mamba2(shape)
    if shape.architecture == "linear" and not shape.attends(index):
        return _gated_delta(shape)
    return _attention(shape)


def _attention(shape: ModelShape) -> Part:
    width = shape.num_heads * shape.head_dim
    gated = shape.architecture == "linear"  # Qwen3.5's attention: a gate as wide as its queries, and norms of queries and keys
    return Part(
        matrices=shape.hidden_size * shape.head_dim * ((3 if gated else 2) * shape.num_heads + 2 * shape.num_kv_heads),
        vectors=shape.hidden_size + (2 * shape.head_dim if gated else 0),
        attends=width,
        span=shape.window or None,
        kept_per_token=2 * shape.num_kv_heads * shape.head_dim,
    )


def _feed_forward(shape: ModelShape) -> Part:
    if shape.architecture == "alibi":  # MPT's: two matrices around a GELU
        return Part(matrices=2 * shape.hidden_size * shape.intermediate_size, vectors=shape.hidden_size)
    one = 3 * shape.hidden_size * shape.intermediate_size
    if shape.architecture != "moe":
        return Part(matrices=one, vectors=shape.hidden_size)
    router = shape.hidden_size * shape.num_experts
    return Part(
        matrices=router + shape.experts_per_token * one,
        idle=(shape.num_experts - shape.experts_per_token) * one,
        vectors=shape.hidden_size,
    )


def _mamba2(shape: ModelShape) -> Part:
    """h ← exp(Δ·A)·h + Δ·B·xᵀ and y = C·h, per head a matrix of state_size × state_head_dim; B and C are shared by the heads."""
    inner = shape.state_heads * shape.state_head_dim
    mixed = inner + 2 * shape.state_size  # what the convolution passes: x, B, C
    return Part(
        matrices=shape.hidden_size * (inner + mixed + shape.state_heads) + inner * shape.hidden_size,
        vectors=shape.hidden_size + mixed * (CONVOLUTION + 1) + 3 * shape.state_heads + inner,
        state=inner * shape.state_size + mixed * CONVOLUTION,
        recurrence=5 * inner * shape.state_size + 2 * CONVOLUTION * mixed,
    )


def _gated_delta(shape: ModelShape) -> Part:
    """S ← a·S + b·k·(v − aSᵀk)ᵀ and y = Sᵀq, per head a matrix of state_size × state_head_dim."""
    keys, values = shape.state_heads * shape.state_size, shape.state_heads * shape.state_head_dim
    mixed = 2 * keys + values
    return Part(
        matrices=shape.hidden_size * (mixed + values + 2 * shape.state_heads) + values * shape.hidden_size,
        vectors=shape.hidden_size + mixed * CONVOLUTION + 2 * shape.state_heads + shape.state_head_dim,
        state=keys * shape.state_head_dim + mixed * CONVOLUTION,
        recurrence=7 * keys * shape.state_head_dim + 2 * CONVOLUTION * mixed,
    )
