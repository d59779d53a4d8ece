"""What goes in and what comes out: a request for tokens, and the emissions that answer it.

Promise: a `Request` says everything that decides its tokens (prompt, sampling, seed, choice, what was emitted so far), so
the same request gives the same tokens wherever and with whomever it runs; these records import neither torch nor Ray.
Price: none. Source: DESIGN.md, "the tokens are the request".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Completion", "Emission", "FinishReason", "Request", "Run", "Sampling", "TokenLogprob"]

FinishReason = Literal["stop", "length", "cancelled"]
MAX_STOPS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn from the model's distribution, and when to stop."""

    max_tokens: int = 64
    """The most tokens to emit."""
    temperature: float = 1.0
    """0 takes the likeliest token; higher values flatten the distribution."""
    top_k: int = 0
    """Draw from the k likeliest tokens only; 0 means all."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens that holds this much probability."""
    seed: int | None = None
    """Same seed, same tokens. None: the engine draws one when it admits the request."""
    stop: tuple[str, ...] = ()
    """Strings that end the text; they are never shown."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the text besides the model's own end token; their text is not shown."""
    ignore_eos: bool = False
    """Go on past the model's end token (for measuring)."""
    logprobs: int | None = None
    """None: off. k: each token's log-probability under the model, with the k likeliest alternatives."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens: {self.max_tokens} is too small; ask for at least 1 token")
        if not 0.0 <= self.temperature <= 100.0:
            raise ValueError(f"temperature: {self.temperature} is out of range; use 0 (greedy) to 100")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p: {self.top_p} is out of range; use a share above 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k: {self.top_k} is negative; use 0 for all tokens or a positive count")
        if self.logprobs is not None and not 0 <= self.logprobs <= 100:
            raise ValueError(f"logprobs: {self.logprobs} is out of range; ask for 0 to 100 alternatives")
        if len(self.stop) > MAX_STOPS or any(not text for text in self.stop):
            raise ValueError(f"stop: give at most {MAX_STOPS} strings, none of them empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Tokens to go on from. With `emitted`, the request resumes: only what comes after is emitted."""

    id: str
    """The caller's name for it, unique among the engine's live requests."""
    prompt: tuple[int, ...]
    """Token ids to go on from."""
    sampling: Sampling = Sampling()
    choice: int = 0
    """Which of n completions of one prompt and seed this is."""
    emitted: tuple[int, ...] = ()
    """Tokens already emitted, here or elsewhere."""
    tenant: str = ""
    """Whose request it is: prefixes are shared within a tenant only."""
    client: str = ""
    """Who shares fairly with others (policy fair); by default the tenant."""
    priority: int = 0
    """Higher goes first, and may push lower ones out of the batch."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", tuple(self.prompt))
        object.__setattr__(self, "emitted", tuple(self.emitted))
        if not self.prompt:
            raise ValueError(f"prompt: request {self.id!r} has no tokens; give at least one")
        if self.choice < 0:
            raise ValueError(f"choice: {self.choice} is negative; the choices of a prompt are 0 to n-1")


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's natural-log probability under the model (before temperature), and the likeliest alternatives."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token, logprob), likeliest first."""


@dataclass(frozen=True, slots=True)
class Run:
    """What verification chose for one sequence: accepted drafts and one token more."""

    tokens: list[int]
    logprobs: list[TokenLogprob] | None = None

    @property
    def num_accepted(self) -> int:
        """Drafts that held."""
        return len(self.tokens) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Emission:
    """One request's news after a step."""

    request_id: str
    tokens: tuple[int, ...]
    """New tokens, a stop token included."""
    text: str
    """New text to show; held back while it may still be part of a stop string or of an incomplete character."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One per token where asked for."""
    finish_reason: FinishReason | None = None
    """None while there is more to come."""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    """Prompt tokens whose KV was found in the prefix cache when the request was first admitted."""
    num_drafted: int = 0
    """Tokens drafted for this request so far."""
    num_accepted: int = 0
    """Drafted tokens that held so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished request, as `Engine.generate` returns it."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_drafted: int = 0
    num_accepted: int = 0

    @property
    def usage(self) -> dict[str, int]:
        """Token counts, in OpenAI's words."""
        emitted = len(self.tokens)
        return {"prompt_tokens": self.num_prompt_tokens, "completion_tokens": emitted, "total_tokens": self.num_prompt_tokens + emitted}
