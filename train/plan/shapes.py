"""What a decoder of a given shape holds and costs, by arithmetic: parameters, FLOPs per token, bytes of keys, values and state.

Promise: the parameter count is exact (tests hold it to transformers' own models); FLOPs count every matrix product, attention
over causal positions included, and nothing else. N, wherever a law is meant, counts *all* parameters, embeddings included, as the
Chinchilla study does (Hoffmann et al. 2022; Pearce & Song 2024 on why that matters at small scale). Price: none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal, get_args

from cluster.settings import as_dict, parse, settings
from train.plan.layers import Part, layer_parts, mean_span

__all__ = ["Architecture", "ModelShape", "candidate_shapes", "shape_of_width"]

Architecture = Literal["dense", "sliding", "alibi", "moe", "ssm", "hybrid", "linear"]

_WIDTHS = (
    96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 2048, 2560, 3072, 3584, 4096, 4608, 5120, 6144,
    7168, 8192, 10240, 12288, 16384,
)  # fmt: skip
_WIDEST_LAYER = 128  # width to a layer of large models: LLaMA 7B is 4096 x 32, 13B 5120 x 40, GPT-3 12288 x 96, Llama 3.1 405B 16384 x 126
_TIED_BELOW = 2048  # narrower models share their embedding: there it is a large part of all parameters
_ATTENTION = ("num_heads", "num_kv_heads", "head_dim")
_STATE = ("state_heads", "state_head_dim", "state_size")
_FIELDS: dict[str, tuple[str, ...]] = {
    "dense": (*_ATTENTION, "intermediate_size"),
    "sliding": (*_ATTENTION, "intermediate_size", "window"),
    "alibi": (*_ATTENTION, "intermediate_size"),
    "moe": (*_ATTENTION, "intermediate_size", "num_experts", "experts_per_token"),
    "ssm": _STATE,
    "hybrid": (*_ATTENTION, "intermediate_size", *_STATE, "attention_every"),
    "linear": (*_ATTENTION, "intermediate_size", *_STATE, "attention_every"),
}
_OPTIONAL = sorted({name for names in _FIELDS.values() for name in names})


@settings
class ModelShape:
    """A decoder of RMS norms without biases. What a field does not say, the architecture's recipe does."""

    architecture: Architecture = "dense"
    """Recipe in train/architectures.py. dense: attention with rotary positions and a gated feed-forward layer; sliding: the same,
    attention looks back over a window; alibi: distances as a bias instead of rotary positions; moe: the feed-forward layer is one of
    experts; ssm: Mamba-2; hybrid: Mamba-2 with some attention layers; linear: gated DeltaNet with some attention layers."""
    vocab_size: int
    """Rows of the embedding."""
    hidden_size: int
    """Width of the residual stream."""
    num_layers: int
    """Decoder layers."""
    num_heads: int = 0
    """Query heads."""
    num_kv_heads: int = 0
    """Key and value heads; each serves num_heads / num_kv_heads query heads."""
    head_dim: int = 0
    """Width of a head."""
    intermediate_size: int = 0
    """Width of the feed-forward layer; with experts, of each."""
    tie_embeddings: bool
    """Whether the output layer is the embedding, transposed."""
    max_length: int
    """Longest context in tokens."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies, where positions are rotary."""
    window: int = 0
    """sliding: tokens that a query sees, itself included."""
    num_experts: int = 0
    """moe: experts in a layer."""
    experts_per_token: int = 0
    """moe: experts that a token is sent to."""
    state_heads: int = 0
    """ssm, hybrid, linear: heads of a recurrent layer."""
    state_head_dim: int = 0
    """ssm, hybrid, linear: width of what such a head reads and writes."""
    state_size: int = 0
    """ssm, hybrid, linear: width of the keys it is stored under: a head's state is state_size x state_head_dim."""
    attention_every: int = 0
    """hybrid, linear: every n-th layer attends, the others are recurrent."""

    def __post_init__(self) -> None:
        needed = _FIELDS[self.architecture]
        for name in ("vocab_size", "hidden_size", "num_layers", "max_length", *needed):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: is {getattr(self, name)}; must be at least 1")
        if unused := [name for name in _OPTIONAL if name not in needed and getattr(self, name)]:
            raise ValueError(f"{unused[0]}: is {getattr(self, unused[0])}; architecture {self.architecture} has no such thing")
        if self.num_heads and self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads: {self.num_kv_heads} does not divide num_heads {self.num_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim: is {self.head_dim}; rotary positions need an even number")
        if self.experts_per_token > self.num_experts:
            raise ValueError(f"experts_per_token: is {self.experts_per_token}, of {self.num_experts} experts")
        self._check_family()

    def _check_family(self) -> None:
        """What the classes behind the recipes cannot be asked for."""
        if self.attention_every > self.num_layers:
            raise ValueError(f"attention_every: is {self.attention_every}; of {self.num_layers} layers none would attend")
        if self.architecture == "alibi" and (self.num_kv_heads, self.num_heads * self.head_dim, self.intermediate_size) != (
            self.num_heads, self.hidden_size, 4 * self.hidden_size,
        ):  # fmt: skip
            raise ValueError(
                "alibi: needs num_kv_heads = num_heads, num_heads * head_dim = hidden_size, intermediate_size = 4 * hidden_size"
            )
        if self.architecture in ("ssm", "hybrid") and self.state_heads * self.state_head_dim != 2 * self.hidden_size:
            raise ValueError(f"state_heads: {self.state_heads} of {self.state_head_dim} must make twice hidden_size {self.hidden_size}")
        if self.architecture == "hybrid" and self.num_heads * self.head_dim != self.hidden_size:
            raise ValueError(f"num_heads: {self.num_heads} of {self.head_dim} must make hidden_size {self.hidden_size}")

    def attends(self, layer: int) -> bool:
        """Whether the 0-based `layer` is an attention layer."""
        return self.num_heads > 0 and (not self.attention_every or (layer + 1) % self.attention_every == 0)

    @property
    def parts(self) -> list[Part]:
        """Mixers and feed-forward layers, from the first to the last."""
        return list(_parts(self))

    @property
    def num_embedding_parameters(self) -> int:
        """Weights of the embedding and, where it is its own matrix, the output layer."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)

    @property
    def num_parameters(self) -> int:
        """All trained weights: N of the scaling laws, where every token uses them all."""
        return self.num_embedding_parameters + _layer_weights(self) + self.hidden_size

    @property
    def num_active_parameters(self) -> int:
        """The weights that one token uses: all but the experts it is not sent to."""
        return self.num_parameters - sum(part.idle for part in self.parts)

    def forward_flops_per_token(self, sequence_length: int) -> float:
        """FLOPs of one token's way forward in a sequence of that many tokens (a multiply-add is 2), output layer included."""
        parts = self.parts
        matrices = sum(part.matrices for part in parts) + self.vocab_size * self.hidden_size
        attention = sum(4.0 * part.attends * mean_span(part.span, sequence_length) for part in parts)
        return 2.0 * matrices + attention + sum(part.recurrence for part in parts)

    def train_flops_per_token(self, sequence_length: int) -> float:
        """FLOPs of one token of training: the way back costs twice the way forward."""
        return 3.0 * self.forward_flops_per_token(sequence_length)

    def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Bytes of keys and values that serving keeps per token of context (within the window, where there is one)."""
        return bytes_per_value * sum(part.kept_per_token for part in self.parts)

    def state_bytes(self, bytes_per_value: int = 2) -> int:
        """Bytes of recurrent state that serving keeps per sequence, however long it is."""
        return bytes_per_value * sum(part.state for part in self.parts)

    def cache_bytes(self, context: int, bytes_per_value: int = 2) -> int:
        """All that serving keeps of a sequence of `context` tokens to go on with it: keys, values and states."""
        kept = sum(part.kept_per_token * min(context, part.span - 1 if part.span else context) for part in self.parts)
        return bytes_per_value * kept + self.state_bytes(bytes_per_value)

    def table(self) -> dict[str, Any]:
        """The `[model]` table of plan.toml: without the fields that the architecture does not have."""
        unused = set(_OPTIONAL) - set(_FIELDS[self.architecture])
        return {name: value for name, value in as_dict(self).items() if name not in unused}

    @classmethod
    def from_table(cls, table: Mapping[str, Any], *, where: str = "[model]") -> ModelShape:
        """The shape in a `[model]` table; ValueError naming `where` and the key if it is not one."""
        return parse(cls, table, where=where)


@lru_cache(maxsize=256)
def _parts(shape: ModelShape) -> tuple[Part, ...]:
    return tuple(layer_parts(shape))


@lru_cache(maxsize=1024)
def _layer_weights(shape: ModelShape) -> int:
    return sum(part.matrices + part.idle + part.vectors for part in _parts(shape))


def shape_of_width(hidden_size: int, *, vocab_size: int, max_length: int, architecture: Architecture = "dense") -> ModelShape:
    """The default shape of a width: depth growing slowly with it, and in proportion from 4096 on, as in the models that people have
    trained; heads of 32 to 128, a feed-forward layer of 8/3 the width.

    Architectures of one width spend about the same on a token: experts are as wide as makes the active ones the dense layer, and
    Mamba's layers, which have no feed-forward layer beside them, are twice as many.

    >>> shape_of_width(256, vocab_size=8192, max_length=512).num_parameters
    7999744
    """
    assert architecture in get_args(Architecture)
    head_dim = 32 if hidden_size < 256 else 64 if hidden_size < 2048 else 128
    heads = hidden_size // head_dim
    layers = max(2, round(hidden_size / min(24 + hidden_size / 32, _WIDEST_LAYER)))  # 128: 5, 256: 8, 768: 16, 2048: 23, 4096: 32
    fields: dict[str, int] = {
        "num_heads": heads,
        "num_kv_heads": max(k for k in range(1, heads + 1) if heads % k == 0 and k <= max(1, heads // 2)),
        "head_dim": head_dim,
        "intermediate_size": max(64, 64 * round(hidden_size * 8 / 3 / 64)),
        "window": max(16, max_length // 4),
        "num_experts": 8,
        "experts_per_token": 2,
        "state_heads": 2 * heads,
        "state_head_dim": head_dim,
        "state_size": head_dim if architecture == "linear" else 64 if hidden_size < 1024 else 128,
        "attention_every": min(4, layers),
    }
    if architecture == "moe":
        fields["intermediate_size"] = max(32, fields["intermediate_size"] // fields["experts_per_token"])
    if architecture == "alibi":
        fields |= {"num_kv_heads": heads, "intermediate_size": 4 * hidden_size}
    if architecture == "linear":
        fields["state_heads"] = heads
    return ModelShape(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=2 * layers if architecture == "ssm" else layers,
        tie_embeddings=hidden_size < _TIED_BELOW or architecture == "alibi",
        max_length=max_length,
        **{name: fields[name] for name in _FIELDS[architecture]},
    )


def candidate_shapes(
    *, vocab_size: int, max_length: int, max_parameters: int | None = None, architecture: Architecture = "dense"
) -> Iterator[ModelShape]:
    """Shapes from narrow to wide, up to `max_parameters` parameters: a grid about 1.5 apart in size."""
    for width in _WIDTHS:
        shape = shape_of_width(width, vocab_size=vocab_size, max_length=max_length, architecture=architecture)
        if max_parameters is None or shape.num_parameters <= max_parameters:
            yield shape
