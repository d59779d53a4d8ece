"""The body of POST /v1/completions.

Promise: every shape of `prompt` that OpenAI takes, and which options go with which. Price: part of the one validation.
Source: OpenAI's API reference.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from serve.protocol import MAX_CHOICES, Generation, Listed, TokenId, Unsupported

__all__ = ["CompletionRequest"]


class CompletionRequest(Generation):
    """The body of POST /v1/completions."""

    prompt: str | Listed[str] | Listed[TokenId] | Listed[Listed[TokenId]]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Unsupported = None
    suffix: Unsupported = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None

    @model_validator(mode="after")
    def _check_completion(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise ValueError("best_of: must be at least n")
        if self.stream and self.num_computed > (self.n or 1):
            raise ValueError("best_of: the best are known at the end only, so more than n cannot be streamed")
        if not self.prompt:
            raise ValueError("prompt: must not be empty")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives per token, None for no log probabilities."""
        return self.logprobs

    @property
    def limit(self) -> int | None:
        """Tokens to generate; OpenAI's default for completions is 16."""
        return self.max_tokens or 16

    @property
    def num_computed(self) -> int:
        """Choices to compute for each prompt, of which the best n are returned."""
        return self.best_of or self.n or 1

    @property
    def prompts(self) -> list[str | list[int]]:
        """One entry per prompt: text, or token ids as they are."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [entry for entry in self.prompt if not isinstance(entry, int)]
