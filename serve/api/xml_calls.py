"""Tool calls whose arguments are elements: those of Qwen3-Coder and its successors, and of GLM.

Promise: as in serve/api/calls.py, however the text is cut; arguments become JSON, one whole argument at a time: text where the function's
schema says string, else JSON where it is some. Price: a search per piece. Sources: the chat templates of Qwen3-Coder and GLM-4.5.

    <tool_call><function=NAME><parameter=KEY>VALUE</parameter>…</function></tool_call>
    <tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>…</tool_call>
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from serve.api.calls import Arguments, Called, Content, Piece, Reading, Step, overlap

__all__ = ["GLM", "QWEN", "Elements", "XmlCallReader"]

BEGIN, END = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Elements:
    """How a call is written."""

    head: re.Pattern[str]
    """The function's name, and that it is complete."""
    opening: str
    """What an argument begins with."""
    argument: re.Pattern[str]
    """A whole argument: key and value."""
    closing: str
    """What comes after the last one."""


QWEN = Elements(
    re.compile(r"\s*<function=([^>\n]*)>"),
    "<parameter=",
    re.compile(r"<parameter=([^>\n]*)>\n?(.*?)\n?</parameter>", re.DOTALL),
    "</function>",
)
GLM = Elements(
    re.compile(r"\s*([^\s<]*)\s*(?=<arg_key>|</tool_call>)"),
    "<arg_key>",
    re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>\n?(.*?)\n?</arg_value>", re.DOTALL),
    END,
)


class XmlCallReader(Reading):
    """Calls whose arguments are elements (see `serve.api.calls.Reading`)."""

    def __init__(self, elements: Elements, schemas: Mapping[str, Mapping[str, Any]], most: int | None = None) -> None:
        """`schemas`: the parameters of the functions there are. `most`: calls after so many are dropped."""
        self._elements, self._schemas, self._most = elements, schemas, most
        self._state: Literal["text", "head", "arguments", "deaf"] = "text"
        self._held, self._name, self._num_arguments = "", "", 0
        self.num_calls = 0

    def _steps(self) -> Mapping[str, Step]:
        return {"text": self._text, "head": self._head, "arguments": self._arguments, "deaf": self._deaf}

    def _text(self, final: bool) -> list[Piece]:
        if self.num_calls and self._held.lstrip().startswith(END):  # of the call that has just ended
            self._held = self._held.lstrip()[len(END) :]
        at = self._held.find(BEGIN)
        if at >= 0:
            text, self._held, self._state = self._held[:at].rstrip(), self._held[at + len(BEGIN) :], "head"
        else:
            certain = self._held[: len(self._held) - max(overlap(self._held, mark) for mark in (BEGIN, END))].rstrip()
            text = self._held if final else certain
            self._held = self._held[len(text) :]
            text = "" if final and self.num_calls and not text.strip() else text
        return [Content(text)] if text else []

    def _head(self, final: bool) -> list[Piece]:
        match = self._elements.head.match(self._held)
        if match is None:
            return self._no_call() if final else []
        if match[1] not in self._schemas:
            return self._no_call()
        self._held, self._state = self._held[match.end() :], "arguments"
        self._name, self._num_arguments = match[1], 0
        self.num_calls += 1
        return [Called(self.num_calls - 1, match[1]), Arguments(self.num_calls - 1, "{")]

    def _no_call(self) -> list[Piece]:
        self._state = "text"
        return [Content(BEGIN)]

    def _arguments(self, final: bool) -> list[Piece]:
        begins, ends = self._held.find(self._elements.opening), self._held.find(self._elements.closing)
        index = self.num_calls - 1
        if ends >= 0 and not 0 <= begins < ends:
            self._held = self._held[ends + len(self._elements.closing) :]
            self._state = "deaf" if self.num_calls == self._most else "text"
            return [Arguments(index, "}")]
        match = self._elements.argument.search(self._held, begins) if begins >= 0 else None
        if match is None or match.start() != begins:
            self._held = "" if final else self._held
            return []
        self._held = self._held[match.end() :]
        separator = ", " if self._num_arguments else ""
        self._num_arguments += 1
        return [Arguments(index, f"{separator}{json.dumps(match[1], ensure_ascii=False)}: {self._value(match[1], match[2])}")]

    def _value(self, key: str, text: str) -> str:
        """An argument as JSON."""
        properties = self._schemas[self._name].get("properties")
        schema = properties.get(key) if isinstance(properties, dict) else None
        if not (isinstance(schema, dict) and schema.get("type") == "string"):
            try:
                return json.dumps(json.loads(text), ensure_ascii=False)
            except (json.JSONDecodeError, RecursionError):
                pass  # it is text after all
        return json.dumps(text, ensure_ascii=False)
