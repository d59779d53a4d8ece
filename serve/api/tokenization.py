"""The bodies of POST /tokenize and /detokenize, and their answers.

Promise: the tokens that a completion, or a chat, with the same fields would begin with; and the text of tokens, special ones included.
Price: the tokenizer's. Source: vLLM's documentation; OpenAI has no such endpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field, model_validator

from serve.api.chat import Message, TemplateVariables
from serve.api.tools import Tool
from serve.protocol import Addressed, Listed, TokenId

__all__ = ["DetokenizeRequest", "TokenizeRequest", "tokenize_answer"]


class TokenizeRequest(Addressed):
    """The body of POST /tokenize: a prompt, or the messages of a chat."""

    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    """Whether the tokenizer puts its own around a text: by default around a prompt, for a chat template writes them itself."""
    add_generation_prompt: bool = True
    continue_final_message: Literal[False] = False
    return_token_strs: bool | None = None
    tools: list[Tool] | None = None
    chat_template_kwargs: TemplateVariables | None = None

    @model_validator(mode="after")
    def _check(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give either prompt or messages")
        if self.prompt is not None and (self.tools or self.chat_template_kwargs):
            raise ValueError("messages: tools and chat_template_kwargs go with messages only")
        return self

    @property
    def _turns(self) -> list[dict[str, Any]]:
        return [message.turn for message in self.messages or ()]

    def tokens(self, tokenizer: Tokenizes) -> list[int]:
        """The token ids. ValueError where a chat template refuses the messages."""
        if self.prompt is not None:
            return tokenizer.encode(self.prompt, add_special_tokens=self.add_special_tokens is not False)
        variables = {**(self.chat_template_kwargs or {}), "add_generation_prompt": self.add_generation_prompt}
        if self.tools:
            variables["tools"] = [tool.model_dump(exclude_none=True) for tool in self.tools]
        text = tokenizer.chat(self._turns, **variables)
        return tokenizer.encode(text, add_special_tokens=self.add_special_tokens is True)


class DetokenizeRequest(Addressed):
    """The body of POST /detokenize."""

    tokens: Listed[TokenId]


class Tokenizes(Protocol):
    """A tokenizer (serve.engine.text.Tokenizer)."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""

    def chat(self, messages: Sequence[Any], *, add_generation_prompt: bool = True, **extra: Any) -> str:
        """A conversation as text."""

    def token_name(self, token: int) -> str | None:
        """A token as the vocabulary has it."""


def tokenize_answer(body: TokenizeRequest, tokens: list[int], tokenizer: Tokenizes, max_length: int) -> dict[str, Any]:
    """The response to /tokenize."""
    names = [tokenizer.token_name(token) for token in tokens] if body.return_token_strs else None
    return {"count": len(tokens), "max_model_len": max_length, "tokens": tokens, "token_strs": names}
