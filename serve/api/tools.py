"""Tools: what a client offers, which it lets or makes the model call, and how that holds the answer.

Promise: with tool_choice required, or a named function, the answer is calls and nothing else, with arguments that their schemas allow;
under auto the same holds for functions marked strict, for allowed_tools and beside a response_format, and otherwise the text is free.
Price: none here; the engine compiles one grammar. Source: OpenAI's API reference; the grammars are XGrammar's structural tags.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from serve.api.calls import CallReader
from serve.api.convention import PLAIN, Convention
from serve.api.xml_calls import GLM, QWEN, XmlCallReader
from serve.protocol import ApiError, Body

__all__ = ["Tool", "ToolCall", "ToolChoice", "Toolbox", "toolbox"]

NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
"""A function whose parameters are left out has none."""
NO_JSON = r"[^\s{\[][\s\S]*"
"""Text that does not begin as a call does."""


class _Function(Body):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    function: _Function


class _Name(Body):
    name: str


class _Named(Body):
    type: Literal["function"]
    function: _Name


class _Allowed(Body):
    mode: Literal["auto", "required"]
    tools: Annotated[list[_Named], Field(min_length=1)]


class _AllowedTools(Body):
    type: Literal["allowed_tools"]
    allowed_tools: _Allowed


ToolChoice = Literal["none", "auto", "required"] | Annotated[_Named | _AllowedTools, Field(discriminator="type")]


class _Call(Body):
    name: str
    arguments: str


class ToolCall(Body):
    """A call that the model made earlier in a conversation."""

    id: str
    type: Literal["function"]
    function: _Call

    @property
    def turn(self) -> dict[str, Any]:
        """As chat templates read it: with the arguments as an object, where they are one."""
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except (ValueError, RecursionError):  # a number of thousands of digits, too
            arguments = self.function.arguments
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools of one request, in the model's convention."""

    tools: Sequence[Tool]
    """Those that may be called."""
    mode: Literal["auto", "required", "named"]
    parallel: bool
    """Whether an answer may have more than one call."""
    convention: Convention
    special: bool
    """Whether the convention's marks are special tokens, which text shows only if told to."""
    holds: bool
    """Whether calls are held to their schemas."""

    @property
    def sampling(self) -> dict[str, Any]:
        """Fields of `Sampling` for an answer that is free, or that must be calls."""
        if not self.holds:
            return {"skip_special_tokens": False} if self.special else {}
        return {"structural_tag": _structural(self._calls() if self.mode != "auto" else self._calls_in_text())}

    def beside(self, schema: str) -> dict[str, Any]:
        """The same for an answer that, if it is no calls, is JSON that `schema` allows."""
        if self.mode != "auto":
            return self.sampling
        either = [self._calls(), {"type": "json_schema", "json_schema": json.loads(schema)}]
        return {"structural_tag": _structural({"type": "or", "elements": either})}

    def reader(self) -> CallReader | XmlCallReader:
        """What finds the calls in one answer."""
        most, how = 1 if self._only_one else None, self._written
        if how.is_xml:
            schemas = {tool.function.name: tool.function.parameters or {} for tool in self.tools}
            return XmlCallReader(GLM if how.name == "glm" else QWEN, schemas, most)
        return CallReader(how, [tool.function.name for tool in self.tools], most)

    @property
    def _only_one(self) -> bool:
        return self.mode == "named" or not self.parallel

    @property
    def _written(self) -> Convention:
        return PLAIN if self.holds and _is_marked(self.convention, self.special) else self.convention

    def _calls(self) -> dict[str, Any]:
        """Calls and nothing else, as a part of a structural tag."""
        tags = [_tag(tool, self._written) for tool in self.tools]
        form = {"type": "tags_with_separator", "tags": tags, "separator": self._written.separator}
        return {**form, "at_least_one": True, "stop_after_first": self._only_one}

    def _calls_in_text(self) -> dict[str, Any]:
        """Text that is free up to where a call begins."""
        begin = self._written.begin
        if not begin:
            return {"type": "or", "elements": [self._calls(), {"type": "regex", "pattern": NO_JSON}]}
        tags = [_tag(tool, self._written) for tool in self.tools]
        return {"type": "triggered_tags", "triggers": [begin], "tags": tags, "stop_after_first": self._only_one}


def _structural(form: dict[str, Any]) -> str:
    return json.dumps({"type": "structural_tag", "format": form}, ensure_ascii=False)


def _tag(tool: Tool, how: Convention) -> dict[str, Any]:
    """One call of a function, its arguments held to the function's schema."""
    function = tool.function
    schema = NO_PARAMETERS if function.parameters is None else function.parameters
    begin = f'{how.begin}{how.gap}{{"name": "{function.name}", "{how.arguments}": '
    return {
        "type": "tag",
        "begin": begin,
        "content": {"type": "json_schema", "json_schema": schema},
        "end": f"}}{how.gap}{how.end}",
    }


def toolbox(
    tools: Sequence[Tool], choice: ToolChoice, *, parallel: bool, found: tuple[Convention | None, bool], formatted: bool
) -> Toolbox | None:
    """The tools that an answer may call; None if it may call none.

    `found`: the model's convention (serve.api.convention.convention_of); `formatted`: whether the answer is held to a schema besides.
    ApiError 400 for a choice that is none of the tools, or a model whose template shows none.
    """
    if not tools or choice == "none":
        return None
    convention, special = found
    if convention is None:
        raise ApiError(
            400, "tools: this model's chat template shows none, or has calls in a form unknown here; leave them out", param="tools"
        )
    mode, names = _chosen(choice)
    offered = {tool.function.name: tool for tool in tools}
    if unknown := [name for name in names if name not in offered]:
        raise ApiError(400, f"tool_choice: {unknown[0]!r} is none of the tools", param="tool_choice")
    usable = [offered[name] for name in names] if names else list(offered.values())
    holds = mode != "auto" or formatted or bool(names) or any(tool.function.strict for tool in usable)
    if mode == "auto" and holds and not formatted and _is_marked(convention, special):
        what = "allowed_tools" if names else "strict"
        reason = "this model marks calls in a way that nothing can be held to while the text is free"
        raise ApiError(400, f"tools: {reason}; use tool_choice required or a named function, or leave {what} out", param="tools")
    return Toolbox(usable, mode, parallel, convention, special, holds)


def _is_marked(convention: Convention, special: bool) -> bool:
    """Whether a convention's marks are beyond a grammar."""
    return special or convention.is_xml or bool(convention.name_end)


def _chosen(choice: ToolChoice) -> tuple[Literal["auto", "required", "named"], list[str]]:
    """The mode, and the names that a choice is limited to."""
    if isinstance(choice, _Named):
        return "named", [choice.function.name]
    if isinstance(choice, _AllowedTools):
        return choice.allowed_tools.mode, [each.function.name for each in choice.allowed_tools.tools]
    return ("required" if choice == "required" else "auto"), []
