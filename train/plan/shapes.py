"""What a decoder of a given shape holds and costs, by arithmetic: parameters, FLOPs per token, KV bytes per token.

Promise: the parameter count is exact (tests hold it to transformers' own models); FLOPs count every matrix product, attention
over causal positions included, and nothing else. N, wherever a law is meant, counts *all* parameters, embeddings included, as the
Chinchilla study does (Hoffmann et al. 2022; Pearce & Song 2024 on why that matters at small scale). Price: none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from cluster.settings import as_dict, parse, settings

__all__ = ["Architecture", "ModelShape", "candidate_shapes", "shape_of_width"]

Architecture = Literal["dense"]

_WIDTHS = (96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 2048, 2560, 3072, 4096, 5120, 6144, 8192)
_TIED_BELOW = 2048  # narrower models share their embedding: there it is a large part of all parameters


@settings
class ModelShape:
    """A Llama-like decoder: grouped-query attention with rotary positions, gated feed-forward, RMS norms, no biases."""

    architecture: Architecture = "dense"
    """Recipe in train/architectures.py."""
    vocab_size: int
    """Rows of the embedding."""
    hidden_size: int
    """Width of the residual stream."""
    num_layers: int
    """Decoder layers."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key and value heads; each serves num_heads / num_kv_heads query heads."""
    head_dim: int
    """Width of a head."""
    intermediate_size: int
    """Width of the feed-forward layer."""
    tie_embeddings: bool
    """Whether the output layer is the embedding, transposed."""
    max_length: int
    """Longest context in tokens."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "intermediate_size", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: is {getattr(self, name)}; must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads: {self.num_kv_heads} does not divide num_heads {self.num_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim: is {self.head_dim}; rotary positions need an even number")

    @property
    def layer_matrix_parameters(self) -> int:
        """Weights of one layer's seven matrices."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return attention + 3 * self.hidden_size * self.intermediate_size

    @property
    def num_embedding_parameters(self) -> int:
        """Weights of the embedding and, where it is its own matrix, the output layer."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)

    @property
    def num_parameters(self) -> int:
        """All trained weights: N of the scaling laws."""
        norms = self.hidden_size * (2 * self.num_layers + 1)
        return self.num_embedding_parameters + self.num_layers * self.layer_matrix_parameters + norms

    def forward_flops_per_token(self, sequence_length: int) -> float:
        """FLOPs of one token's way forward in a sequence of that many tokens (a multiply-add is 2), output layer included."""
        matrices = self.num_layers * self.layer_matrix_parameters + self.vocab_size * self.hidden_size
        seen = (sequence_length + 1) / 2  # a causal token sees half of the sequence on average
        return 2.0 * matrices + 4.0 * self.num_layers * self.num_heads * self.head_dim * seen

    def train_flops_per_token(self, sequence_length: int) -> float:
        """FLOPs of one token of training: the way back costs twice the way forward."""
        return 3.0 * self.forward_flops_per_token(sequence_length)

    def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Bytes of keys and values that serving keeps per token of context."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_value

    def table(self) -> dict[str, Any]:
        """The `[model]` table of plan.toml."""
        return as_dict(self)

    @classmethod
    def from_table(cls, table: Mapping[str, Any], *, where: str = "[model]") -> ModelShape:
        """The shape in a `[model]` table; ValueError naming `where` and the key if it is not one."""
        return parse(cls, table, where=where)


def shape_of_width(hidden_size: int, *, vocab_size: int, max_length: int, architecture: Architecture = "dense") -> ModelShape:
    """The default shape of a width: depth growing slowly with it, heads of 32 to 128, a feed-forward layer of 8/3 the width.

    >>> shape_of_width(256, vocab_size=8192, max_length=512).num_parameters
    7999744
    """
    assert architecture in get_args(Architecture)
    head_dim = 32 if hidden_size < 256 else 64 if hidden_size < 2048 else 128
    heads = hidden_size // head_dim
    return ModelShape(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=max(2, round(hidden_size / (24 + hidden_size / 32))),  # 128: 5, 256: 8, 768: 16, 2048: 23, 4096: 27
        num_heads=heads,
        num_kv_heads=max(k for k in range(1, heads + 1) if heads % k == 0 and k <= max(1, heads // 2)),
        head_dim=head_dim,
        intermediate_size=max(64, 64 * round(hidden_size * 8 / 3 / 64)),
        tie_embeddings=hidden_size < _TIED_BELOW,
        max_length=max_length,
    )


def candidate_shapes(*, vocab_size: int, max_length: int, max_parameters: int | None = None) -> Iterator[ModelShape]:
    """Shapes from narrow to wide, up to `max_parameters` parameters: a grid about 1.5 apart in size."""
    for width in _WIDTHS:
        shape = shape_of_width(width, vocab_size=vocab_size, max_length=max_length)
        if max_parameters is None or shape.num_parameters <= max_parameters:
            yield shape
