"""The body of POST /v1/chat/completions.

Promise: a conversation as the model's chat template reads it, and the tools that its answer may call. Price: part of the one
validation. Source: OpenAI's API reference; `chat_template_kwargs` follows vLLM.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from serve.api.convention import Convention
from serve.api.tools import Tool, Toolbox, ToolCall, ToolChoice, toolbox
from serve.protocol import Body, Generation, Unsupported

__all__ = ["ChatRequest", "Message", "TemplateVariables"]


class _TextPart(Body):
    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: Any = None  # prefixes are cached anyway


Text = str | list[_TextPart]


class _Said(Body):
    role: Literal["system", "developer", "user"]
    content: Text
    name: Any = None

    @property
    def turn(self) -> dict[str, Any]:
        """As chat templates read it; a developer's message is a system message."""
        return {"role": "system" if self.role == "developer" else self.role, "content": _flat(self.content)}


class _Answered(Body):
    role: Literal["assistant"]
    content: Text | None = None
    name: Any = None
    refusal: Any = None
    annotations: Any = None  # as an answer of OpenAI's has them that is sent back
    tool_calls: list[ToolCall] | None = None
    audio: Unsupported = None
    function_call: Unsupported = None

    @model_validator(mode="after")
    def _check(self) -> _Answered:
        if self.content is None and not self.tool_calls:
            raise ValueError("must have content where there are no tool_calls")
        return self

    @property
    def turn(self) -> dict[str, Any]:
        """As chat templates read it."""
        calls = {"tool_calls": [call.turn for call in self.tool_calls]} if self.tool_calls else {}
        return {"role": "assistant", "content": _flat(self.content or ""), **calls}


class _Result(Body):
    role: Literal["tool"]
    content: Text
    tool_call_id: str

    @property
    def turn(self) -> dict[str, Any]:
        """As chat templates read it."""
        return {"role": "tool", "content": _flat(self.content), "tool_call_id": self.tool_call_id}


Message = Annotated[_Said | _Answered | _Result, Field(discriminator="role")]
"""One message of a conversation."""
_OURS = ("messages", "tools", "add_generation_prompt", "self")


def _check_variables(variables: dict[str, Any]) -> dict[str, Any]:
    if taken := [name for name in variables if name in _OURS]:
        raise ValueError(f"{taken[0]!r} is not for the client to give")
    return variables


TemplateVariables = Annotated[dict[str, Any], AfterValidator(_check_variables)]
"""What a client may want a chat template to know."""


class ChatRequest(Generation):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: TemplateVariables | None = None
    functions: Unsupported = None
    function_call: Unsupported = None
    modalities: list[Literal["text"]] | None = None
    audio: Unsupported = None
    moderation: Unsupported = None
    web_search_options: Unsupported = None
    prediction: Any = None  # a guess that makes it faster: a hint, ignored
    reasoning_effort: Any = None
    verbosity: Any = None

    @model_validator(mode="after")
    def _check_chat(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: only allowed when logprobs is true")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise ValueError("tool_choice: only allowed with tools")
        if self.structured_outputs is not None and self.calls_allowed:
            raise ValueError("structured_outputs: given together with tools; use response_format, or tool_choice none")
        return self

    @property
    def calls_allowed(self) -> bool:
        """Whether the answer may call tools."""
        return bool(self.tools) and self.tool_choice != "none"

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
    def turns(self) -> list[dict[str, Any]]:
        """The messages as a chat template reads them."""
        return [message.turn for message in self.messages]

    @property
    def template_variables(self) -> dict[str, Any]:
        """What else the chat template is given: the tools, and whatever the client wants it to know."""
        shown = {"tools": [tool.model_dump(exclude_none=True) for tool in self.tools or ()]} if self.calls_allowed else {}
        return {**(self.chat_template_kwargs or {}), **shown}

    def toolbox(self, found: tuple[Convention | None, bool]) -> Toolbox | None:
        """What the answer may call, in the model's convention (serve.api.convention.convention_of); None for a plain answer."""
        parallel = self.parallel_tool_calls is not False
        return toolbox(
            self.tools or (), self.tool_choice or "auto", parallel=parallel, found=found, formatted="json_schema" in self.grammar
        )

    def held(self, box: Toolbox | None) -> dict[str, Any]:
        """What the answer is held to, as fields of `Sampling`."""
        if box is None:
            return self.grammar
        return box.beside(self.grammar["json_schema"]) if "json_schema" in self.grammar else box.sampling


def _flat(content: Text) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
