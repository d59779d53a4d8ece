"""What goes in and what comes out: a request for tokens, and the emissions that answer it.

Promise: a `Request` says everything that decides its tokens (prompt, sampling, seed, choice, what was emitted so far), so
the same request gives the same tokens wherever and with whomever it runs; these records import neither torch nor Ray.
Price: none. Source: DESIGN.md, "the tokens are the request".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import index
from typing import Any, Literal

__all__ = ["Completion", "Emission", "FinishReason", "Request", "Run", "Sampling", "TokenLogprob"]

FinishReason = Literal["stop", "length", "cancelled"]
MAX_STOPS = 16
COLDEST = 1e-200
"""Temperatures below this count as this: only the likeliest are left here already, and nothing divided by it overflows."""
MAX_GRAMMAR = 100_000
"""Characters of a schema, regular expression or grammar."""
MAX_BIAS = 1e30
"""A bias this large leaves no other token a chance; sums of such and what penalties make of them stay finite."""
PENALTIES = 1e-3, 1e3
"""The repetition penalties that are of use, and with which logits stay finite."""
_WHOLE = ("max_tokens", "top_k", "min_tokens", "n")
_WHOLE_OR_NONE = ("seed", "logprobs", "best_of")
_REAL = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_GRAMMARS = ("json_schema", "regex", "grammar", "structural_tag")


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
    min_p: float = 0.0
    """Draw from tokens at least this share as likely as the likeliest one; 0 means all."""
    repetition_penalty: float = 1.0
    """Of a token in the prompt or the output, divide a positive logit by this, multiply a negative one (Keskar et al. 2019); 1 is off."""
    presence_penalty: float = 0.0
    """Take this off the logit of every token that is in the output (OpenAI's definition)."""
    frequency_penalty: float = 0.0
    """Take this off a token's logit for each time it is in the output (OpenAI's definition)."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, what to add to its logit); a mapping will do."""
    seed: int | None = None
    """Same seed, same tokens. None: the engine draws one when it admits the request."""
    stop: tuple[str, ...] = ()
    """Strings that end the text; they are never shown."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the text besides the model's own end token; their text is not shown."""
    ignore_eos: bool = False
    """Go on past the model's end token (for measuring)."""
    min_tokens: int = 0
    """Before this many tokens neither the model's end token nor a stop token can be drawn; stop strings end the text all the same."""
    json_schema: str | None = None
    """The text is JSON that this schema allows; a mapping will do. '{"type": "object"}' allows any object."""
    regex: str | None = None
    """The whole text matches this regular expression."""
    grammar: str | None = None
    """The text is a sentence of this EBNF grammar (llama.cpp's notation), whose first rule is called root."""
    structural_tag: str | None = None
    """Which parts of the text are held to what, where they begin and end (XGrammar's structural tags, as JSON): tool calls, for one."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text; off where they say something, as where tool calls begin. Stop tokens are never shown."""
    logprobs: int | None = None
    """None: off. k: each token's log-probability under the model (before any option), with the k likeliest alternatives."""
    n: int = 1
    """Completions that `Engine.generate` returns per prompt, the choices 0 to n-1 of one seed; `Engine.add` runs one choice at a time."""
    best_of: int | None = None
    """`Engine.generate` computes this many choices and returns the n with the highest mean log-probability per token."""

    def __post_init__(self) -> None:
        self._plain()
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
        if len(self.stop) > MAX_STOPS or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop: give at most {MAX_STOPS} strings, none of them empty")
        if min(self.stop_token_ids, default=0) < 0:
            raise ValueError(f"stop_token_ids: {min(self.stop_token_ids)} is negative; use token ids of the model")
        self._check_penalties()
        self._check_grammar()
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise ValueError(f"min_tokens: {self.min_tokens} is out of range; use 0 to max_tokens ({self.max_tokens})")
        if self.n < 1:
            raise ValueError(f"n: {self.n} is too small; ask for at least 1 completion")
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError(f"best_of: {self.best_of} is less than n; compute at least the {self.n} that are asked for")

    @property
    def guided_by(self) -> str | None:
        """Which of json_schema, regex, grammar and structural_tag the text is held to, if any."""
        return next((name for name in _GRAMMARS if getattr(self, name) is not None), None)

    def _plain(self) -> None:
        """Plain Python values whatever was given (numpy's numbers, a mapping), so that nothing fails when they are used, or travel."""
        for name in (*_WHOLE, *_WHOLE_OR_NONE):
            value = getattr(self, name)
            if type(value) is not int and not (value is None and name in _WHOLE_OR_NONE):
                object.__setattr__(self, name, _whole(name, value))
        for name in _REAL:
            value = getattr(self, name)
            if type(value) is not float:
                object.__setattr__(self, name, _real(name, value))
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(_whole("stop_token_ids", token) for token in self.stop_token_ids))
        object.__setattr__(self, "logit_bias", _pairs(self.logit_bias))
        if isinstance(self.json_schema, Mapping):
            object.__setattr__(self, "json_schema", json.dumps(self.json_schema, ensure_ascii=False))

    def _check_penalties(self) -> None:
        if not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"min_p: {self.min_p} is out of range; use a share from 0 to 1")
        least, most = PENALTIES
        if not least <= self.repetition_penalty <= most:
            raise ValueError(f"repetition_penalty: {self.repetition_penalty} is out of range; use {least} to {most:g}, 1 for none")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -100.0 <= getattr(self, name) <= 100.0:
                raise ValueError(f"{name}: {getattr(self, name)} is out of range; use -100 to 100, 0 for none")
        bad = next((pair for pair in self.logit_bias if pair[0] < 0 or not abs(pair[1]) <= MAX_BIAS), None)
        if bad is not None:
            raise ValueError(f"logit_bias: {bad[1]} for token {bad[0]}; use token ids of the model and numbers up to {MAX_BIAS:g}")

    def _check_grammar(self) -> None:
        given = [name for name in _GRAMMARS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{given[1]}: given together with {given[0]}; use only one of them")
        if not isinstance(self.skip_special_tokens, bool):
            raise ValueError(f"skip_special_tokens: {self.skip_special_tokens!r} is neither true nor false")
        if given and not isinstance(getattr(self, given[0]), str):
            raise ValueError(f"{given[0]}: {getattr(self, given[0])!r} is no text; write it as a string")
        if given and len(getattr(self, given[0])) > MAX_GRAMMAR:
            raise ValueError(f"{given[0]}: is longer than {MAX_GRAMMAR} characters; simplify it")


def _pairs(bias: Mapping[Any, float] | Iterable[Any]) -> tuple[tuple[int, float], ...]:
    """Tokens and biases, whichever way they were written: pairs, JSON's lists of them, or a mapping."""
    pairs = bias.items() if isinstance(bias, Mapping) else bias
    return tuple((int(token), _real("logit_bias", value)) for token, value in pairs)


def _whole(name: str, value: Any) -> int:
    try:
        return int(index(value))
    except TypeError:
        raise ValueError(f"{name}: {value!r} is not a whole number; give one") from None


def _real(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: {value!r} is not a number; give one") from None


def _tokens(name: str, tokens: Iterable[Any]) -> tuple[int, ...]:
    try:
        return tuple(map(index, tokens))
    except TypeError:
        raise ValueError(f"{name}: is not a sequence of token ids; encode text with the engine's tokenizer") from None


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
    adapter: str = ""
    """The LoRA adapter to answer with, one of those the engine has loaded; empty for the model as it is."""
    client: str = ""
    """Who shares fairly with others (policy fair); by default the tenant."""
    priority: int = 0
    """Higher goes first, and may push lower ones out of the batch."""

    def __post_init__(self) -> None:
        for name in ("prompt", "emitted"):
            object.__setattr__(self, name, _tokens(name, getattr(self, name)))
        for name in ("choice", "priority"):
            object.__setattr__(self, name, _whole(name, getattr(self, name)))
        for name in ("id", "tenant", "adapter", "client"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}: {getattr(self, name)!r} is no text; give a string")
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
    likeliest: list[int] = field(default_factory=list)
    """The likeliest token at every verified position, those behind a draft that failed too."""

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
    num_computed_tokens: int = 0
    """Of the tokens the request came with (prompt, and what was emitted elsewhere), those computed here so far."""
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
    others: tuple[Completion, ...] = ()
    """With n above 1: the prompt's other completions."""

    @property
    def choices(self) -> tuple[Completion, ...]:
        """All n completions of the prompt: in the order of their numbers, or the best first where best_of is above n."""
        return (self, *self.others)

    @property
    def usage(self) -> dict[str, int]:
        """Token counts, in OpenAI's words."""
        emitted = len(self.tokens)
        return {"prompt_tokens": self.num_prompt_tokens, "completion_tokens": emitted, "total_tokens": self.num_prompt_tokens + emitted}
