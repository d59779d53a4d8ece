"""The engine's settings.

Promise: frozen data with a reason for every default; what cannot work is refused here, before any weight is read.
Price: none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Literal, get_args, get_origin, get_type_hints

from cluster.settings import settings

__all__ = ["LENGTHS", "UNLIMITED", "EngineConfig"]

LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "context_length")
"""What architectures call their longest text in config.json."""
UNLIMITED = 32_768
"""Longest sequence of an architecture that sets no limit itself (most recurrent ones), unless the settings ask for another."""


@settings
class EngineConfig:
    """How the engine runs a model; the model itself comes from its folder."""

    dtype: Literal["auto", "bfloat16", "float32", "float64"] = "auto"
    """Number type of weights' activations and KV; auto takes the folder's own (bfloat16 for float16, which overflows)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto takes a GPU where there is one."""
    kernels: Literal["auto", "native", "torch"] = "auto"
    """What computes bfloat16 models on a CPU: our own AVX-512 kernels, with which a token never depends on its company, or torch's
    (auto: our own where the processor and a compiler allow)."""
    kv_dtype: Literal["auto", "int8"] = "auto"
    """Number type of KV; auto is the activations'. int8 (a scale per token and head) holds twice the tokens and changes some of them."""
    block_size: int = 16
    """Tokens per KV block: small blocks waste less and share shorter prefixes, large ones copy faster."""
    kv_bytes: int | None = None
    """Memory for KV blocks in bytes; by default 1 GiB, or less where max_sequences sequences of max_length need less."""
    num_blocks: int | None = None
    """Number of KV blocks, instead of kv_bytes."""
    max_sequences: int = 16
    """Sequences that run at once; more of them wait."""
    max_tokens_per_step: int = 512
    """Tokens computed in one step: longer prompts are computed in chunks, so that running streams do not wait long."""
    max_step_s: float | None = None
    """About the longest that a step should take while answers stream, in seconds: prompts then advance by smaller pieces. By default
    only max_tokens_per_step limits them."""
    max_length: int | None = None
    """Longest prompt and output together, in tokens; by default the model's own limit."""
    prefix_cache: bool = True
    """Keep the KV of finished requests, and share it with later ones that begin with the same tokens."""
    policy: Literal["fcfs", "fair", "shortest"] = "fcfs"
    """Which waiting request of a priority starts next: the first to come; one of the client served least so far; or the one
    with the shortest predicted answer (which gains on average, and lets nobody wait without bound)."""
    preempt: Literal["swap", "recompute"] = "swap"
    """When blocks run out, a sequence gives up its KV: copy it to host memory, as far as swap_bytes go, or compute it again later."""
    swap_bytes: int = 256 << 20
    """The most host memory for the KV of preempted sequences, in bytes; what does not fit is computed again."""
    draft: Literal["ngram", "anpd", "off"] = "ngram"
    """Draft tokens and verify them together, which never changes the tokens: from repeats of the request's own text and from earlier
    answers, as far as it pays (ngram), or by plain ANPD, the reference, whatever it costs (anpd)."""
    draft_order: int = 8
    """Longest n-gram of the drafter; ANPD's N is 5."""
    draft_max: int = 16
    """Most tokens drafted at once for a sequence; ANPD's K is 7."""
    draft_shared: int = 100_000
    """n-grams of a tenant's finished answers kept for its later drafts, about 150 bytes each; 0 for none."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters to load beside the model, as in ["polite=adapters/polite"]: names and peft's folders. A request names its own."""
    num_threads: int | None = None
    """CPU threads of the whole process; by default torch's own choice."""

    @property
    def adapter_folders(self) -> dict[str, str]:
        """The adapters' folders by name."""
        return {name: folder for name, _, folder in (entry.partition("=") for entry in self.adapters)}

    def with_folders(self, place: Callable[[str], object]) -> EngineConfig:
        """The same, each adapter's folder as `place` has it."""
        return replace(self, adapters=tuple(f"{name}={place(folder)}" for name, folder in self.adapter_folders.items()))

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(EngineConfig).items():
            value = getattr(self, name)
            if get_origin(kind) is Literal and value not in get_args(kind):
                raise ValueError(f"{name}: {value!r} is unknown; use {', '.join(get_args(kind))}")
            if kind in (int, int | None) and not isinstance(value, kind):
                raise ValueError(f"{name}: {value!r} is not a whole number; give one")
        for entry in self.adapters:
            name, _, folder = entry.partition("=")
            if not name or not folder:
                raise ValueError(f"adapters: {entry!r} is not name=folder; write for example polite=adapters/polite")
        if len(self.adapter_folders) < len(self.adapters):
            raise ValueError(f"adapters: a name is given twice among {', '.join(self.adapters)}; give each adapter its own")
        for name in (
            "block_size",
            "max_sequences",
            "max_tokens_per_step",
            "draft_max",
            "kv_bytes",
            "num_blocks",
            "max_length",
            "num_threads",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} is too small; use at least 1")
        if self.draft_shared and self.draft_shared < 1000:
            raise ValueError(f"draft_shared: {self.draft_shared} n-grams are too few; use at least 1000, or 0 for none")
        if self.max_step_s is not None and not 0.0 < self.max_step_s < inf:
            raise ValueError(f"max_step_s: {self.max_step_s} is no time for a step; use some seconds, or leave it out")
        if self.swap_bytes < 0:
            raise ValueError(f"swap_bytes: {self.swap_bytes} is negative; use 0 to copy nothing")
        if self.draft_order < 2:
            raise ValueError(f"draft_order: {self.draft_order} is too small; an n-gram needs a context, so use at least 2")
        if self.kv_bytes is not None and self.num_blocks is not None:
            raise ValueError("num_blocks: set with kv_bytes, and they may disagree; set only one of them")
        if self.max_tokens_per_step < self.max_sequences:
            raise ValueError(
                f"max_tokens_per_step: {self.max_tokens_per_step} leaves no token for some of the {self.max_sequences} sequences; raise it"
            )
