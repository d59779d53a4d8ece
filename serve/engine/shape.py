"""What a decoder looks like: everything in a config.json that changes what is computed.

Promise: two folders with equal shapes are run by the same code; a family's oddities are values here, not branches elsewhere.
Price: none. `families.py` reads config.json into a Shape; `parts.py` names the stored tensors that belong to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serve.engine.rope import Rope

__all__ = ["Experts", "Shape"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A mixture-of-experts MLP: each token goes to the `per_token` experts with the largest softmax(router) weights."""

    count: int
    per_token: int
    size: int
    """Width of one expert."""
    normalise: bool
    """Whether the chosen experts' weights are scaled to sum to 1."""
    shared_size: int = 0
    """Width of the expert that every token goes to, weighted by a sigmoid of its own; 0 for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A causal decoder of attention and MLP layers with residual connections.

    A layer: x += residual_multiplier * norm(out(attention(rope(norm(qkv(norm(x))))))), then the same with the MLP; of the norms
    each family has some (`parts.py` says which). The MLP is down(activation(gate) * up), or down(activation(up)) if not `gated`.
    """

    num_layers: int
    hidden_size: int
    mlp_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_length: int
    eos_token_ids: tuple[int, ...]
    tied: bool
    """Whether the head's matrix is the embedding's."""

    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float
    norm_offset: float = 0.0
    """Added to every stored norm weight before use (Gemma stores weight - 1)."""
    qk_norm: Literal["head", "whole"] | None = None
    """Queries and keys are normed before they are turned: each head by itself, or all heads together."""
    activation: Literal["silu", "gelu_tanh", "gelu"] = "silu"
    gated: bool = True
    parallel: bool = False
    """Attention and MLP of a layer read the same normed input, and both are added to it."""

    windows: tuple[int | None, ...]
    """Per layer: how many keys a query sees, itself included; None for all."""
    ropes: tuple[Rope, ...]
    """The different rotary embeddings of the model (one, mostly)."""
    rope_of: tuple[int | None, ...]
    """Per layer: which of `ropes`; None for a layer without one."""
    attention_scale: float
    """Scores are query · key times this: 1 / sqrt(head_dim) for most."""
    attention_soft_cap: float | None = None
    """Scores s become cap * tanh(s / cap) before the mask."""
    logit_soft_cap: float | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logit_multiplier: float = 1.0

    experts: Experts | None = None
    sparse: tuple[bool, ...]
    """Per layer: whether its MLP is `experts`."""

    def __post_init__(self) -> None:
        for name in ("windows", "rope_of", "sparse"):
            assert len(getattr(self, name)) == self.num_layers, name
        assert not any(self.sparse) or self.experts is not None
        assert self.num_heads % self.num_kv_heads == 0

    @property
    def window(self) -> int | None:
        """The most keys any query sees, or None if some layer sees all: KV further behind is never read again."""
        windows = [window for window in self.windows if window is not None]
        return max(windows) if len(windows) == self.num_layers else None
