"""The body of POST /v1/chat/completions.

Promise: a conversation as the model's chat template reads it. Price: part of the one validation. Source: OpenAI's API reference.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from serve.protocol import Body, Generation, Unsupported

__all__ = ["ChatRequest"]


class _TextPart(Body):
    type: Literal["text"]
    text: str


class _Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_TextPart]
    name: Any = None


class ChatRequest(Generation):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[_Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Unsupported = None
    tool_choice: Unsupported = None
    functions: Unsupported = None
    function_call: Unsupported = None
    modalities: Any = None
    parallel_tool_calls: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None

    @model_validator(mode="after")
    def _check_chat(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: only allowed when logprobs is true")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives per token, None for no log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def limit(self) -> int | None:
        """Tokens to generate; None: as many as the context holds."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_computed(self) -> int:
        """Choices to compute."""
        return self.n or 1

    @property
    def turns(self) -> list[dict[str, str]]:
        """The messages as a chat template reads them; a developer's message is a system message."""
        role = {"developer": "system"}
        return [{"role": role.get(m.role, m.role), "content": _flat(m.content)} for m in self.messages]


def _flat(content: str | list[_TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
