"""How models write tool calls: the conventions of the common chat templates, as data.

Promise: a template's own words say which convention its model was trained on; each is one line of a table. Price: none.
Sources: the chat templates of Hermes and Qwen, Llama 3, Mistral, DeepSeek V3, Granite and GLM, as published on the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["PLAIN", "Convention", "convention_of"]


@dataclass(frozen=True, slots=True)
class Convention:
    """A call is `begin` … `end`, and in between a JSON object with a name and arguments (or, with `name_end`, name and arguments)."""

    name: str
    sign: str
    """What in a chat template tells it."""
    begin: str = ""
    """What opens a call, or a list of them; empty where a call is the whole answer."""
    end: str = ""
    gap: str = ""
    """White space that the model writes between `begin`, or `end`, and the call."""
    separator: str = "; "
    """What comes between calls."""
    arguments: str = "arguments"
    """The key under which the arguments are."""
    name_end: str = ""
    """What comes between a name and its arguments where these are no JSON object together."""
    around: tuple[str, ...] = ()
    """What stands around all calls and says nothing more."""
    is_xml: bool = False
    """Whether arguments are elements (serve/api/xml_calls.py)."""

    @property
    def marks(self) -> tuple[str, ...]:
        """All texts that make a call one."""
        return tuple(mark for mark in (self.begin, self.end, self.name_end, *self.around) if mark)


PLAIN = Convention("plain", "")
"""Calls as bare JSON: for models that mark theirs with special tokens, which a grammar cannot hold a text to."""
_KNOWN = (
    Convention("qwen-xml", "<function=", "<tool_call>", is_xml=True),
    Convention("glm", "<arg_key>", "<tool_call>", is_xml=True),
    Convention("hermes", "<tool_call>", "<tool_call>", "</tool_call>", gap="\n", separator="\n"),
    Convention("mistral-args", "[ARGS]", "[TOOL_CALLS]", separator="", name_end="[ARGS]"),
    Convention("mistral", "[TOOL_CALLS]", "[TOOL_CALLS]"),
    Convention("granite", "<|tool_call|>", "<|tool_call|>"),
    Convention(
        "deepseek",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        "\n```<｜tool▁call▁end｜>",
        separator="\n",
        name_end="\n```json\n",
        around=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    ),
    Convention("llama", '"parameters":', arguments="parameters"),
)


def convention_of(template: str | None, is_special: Callable[[str], bool]) -> tuple[Convention | None, bool]:
    """The convention of a chat template, and whether `is_special` finds special tokens among its marks. None: it shows no tools.

    >>> convention_of("{% if tools %}… <tool_call> …", lambda mark: False)[0].name
    'hermes'
    >>> convention_of("{{ messages }} <tool_call>", lambda mark: False)
    (None, False)
    """
    if template is None or "tools" not in template:
        return None, False
    found = next((convention for convention in _KNOWN if convention.sign in template), None)
    return found, found is not None and any(is_special(mark) for mark in found.marks)
