"""Tool calls in a model's text, as it arrives: what is content, which function is called, and its arguments piece by piece.

Promise: however the text is cut into pieces, the same content, calls and arguments come out, in order; arguments are the model's own
characters, passed on at once; what is no call of a known function is content, never lost. A mark that may have begun is held back.
Price: a few comparisons per character of a call. After: vLLM's and SGLang's parsers, one per model there, one over a table here.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from serve.api.convention import Convention

__all__ = ["Arguments", "Called", "CallReader", "Content", "Piece", "Reading", "overlap"]


@dataclass(frozen=True, slots=True)
class Content:
    """Text that is no call."""

    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """A call of a function begins."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of a call's arguments: the JSON as the model writes it."""

    index: int
    text: str


Piece = Content | Called | Arguments

_HEAD = re.compile(r'\s*\[?\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_KEY = re.compile(r'\s*(?:\[?\s*(?:\{\s*(?:"(?P<key>[^"]*)(?P<whole>"?).*)?)?)?', re.DOTALL)
_KEYS = ("name", "arguments", "parameters", "type", "function", "id")
_LATER = re.compile(r"\s*[,;]\s*(?=[{\[])|\s*(?=\{)")
State = Literal["text", "head", "value", "tail", "gap", "deaf"]


Step = Callable[[bool], list[Piece]]
"""Reads on from where an answer is, given whether it is complete; takes what it has read from what is held."""


class Reading(ABC):
    """Reads one answer, as it arrives: a state, the text that is held back, and for each state the step that reads on."""

    _state: str
    _held: str

    def push(self, text: str) -> list[Piece]:
        """What more text makes certain."""
        self._held += text
        return self._read(final=False)

    def finish(self) -> list[Piece]:
        """What was held back: nothing will follow."""
        return self._read(final=True)

    def _read(self, final: bool) -> list[Piece]:
        pieces: list[Piece] = []
        steps, before = self._steps(), None
        while (self._state, self._held) != before:
            before = (self._state, self._held)
            pieces += steps[self._state](final)
        return pieces

    @abstractmethod
    def _steps(self) -> Mapping[str, Step]:
        """By state."""

    def _deaf(self, final: bool) -> list[Piece]:
        """All calls that are wanted have been made."""
        self._held = ""
        return []


class CallReader(Reading):
    """Calls whose arguments are the model's own JSON."""

    def __init__(self, convention: Convention, names: Collection[str], most: int | None = None) -> None:
        """`names`: the functions there are. `most`: calls after so many are dropped."""
        self._convention, self._names, self._most = convention, frozenset(names), most
        self._state: State = "text"
        self._held = ""
        self._depth, self._in_string, self._escaped = 0, False, False
        self._closes = 0  # the depth at which a call's arguments end
        self._said = False  # whether there was content
        self.num_calls = 0

    def _steps(self) -> Mapping[str, Step]:
        return {"text": self._text, "head": self._head, "value": self._value, "tail": self._tail, "gap": self._gap, "deaf": self._deaf}

    # ---- outside of calls ----------------------------------------------------------------------------------------

    def _text(self, final: bool) -> list[Piece]:
        """Content, up to where a call begins."""
        begin = self._convention.begin
        for mark in self._convention.around:
            self._held = self._held.replace(mark, "")
        if not begin:
            return self._bare(final)
        at = self._held.find(begin)
        if at >= 0:
            found = self._content(self._held[:at].rstrip())
            self._held, self._state = self._held[at + len(begin) :], "head"
            return found
        return self._up_to(len(self._held) if final else self._certain(), final)

    def _bare(self, final: bool) -> list[Piece]:
        """A call without marks is one from the very beginning, or none."""
        if self._held.lstrip()[:1] in ("{", "[") and not self._said and not self.num_calls:
            self._state = "head"
            return []
        return self._up_to(len(self._held) if final else self._certain(), final)

    def _certain(self) -> int:
        """Characters that no mark can have begun in, and that are no white space before one."""
        marks = (self._convention.begin, *self._convention.around)
        longest = max(overlap(self._held, mark) for mark in marks if mark) if marks[0] else 0
        return len(self._held[: len(self._held) - longest].rstrip())

    def _up_to(self, end: int, final: bool) -> list[Piece]:
        text, self._held = self._held[:end], self._held[end:]
        return [] if final and self.num_calls and not text.strip() else self._content(text)

    def _content(self, text: str) -> list[Piece]:
        self._said |= bool(text)
        return [Content(text)] if text else []

    # ---- calls ---------------------------------------------------------------------------------------------------

    def _head(self, final: bool) -> list[Piece]:
        """A call up to its arguments."""
        convention = self._convention
        if convention.name_end:
            name, mark, rest = self._held.partition(convention.name_end)
            if mark and rest.lstrip():
                return self._open(name.strip(), rest.lstrip(), 0) if rest.lstrip()[0] == "{" else self._no_call()
            return self._no_call() if final or (not mark and len(name) > 200) else []
        match = _HEAD.match(self._held)
        if match:
            return self._open(json.loads(match[1], strict=False), self._held[match.end() :], 1)
        return self._unusual(final)

    def _unusual(self, final: bool) -> list[Piece]:
        """A call whose keys come in another order, or no call."""
        text = self._held.lstrip()
        inner = text.removeprefix("[").lstrip()
        key = _KEY.fullmatch(text)
        possible = key is not None and (
            key["key"] is None or any(k == key["key"] if key["whole"] else k.startswith(key["key"]) for k in _KEYS)
        )
        if not possible:
            return self._no_call()
        try:
            found, end = json.JSONDecoder(strict=False).raw_decode(inner)
        except (ValueError, RecursionError):  # a number of thousands of digits, too
            return self._no_call() if final else []
        named = found.get("function") if isinstance(found.get("function"), dict) else found
        arguments = named.get("arguments", named.get("parameters", {}))
        if not isinstance(named.get("name"), str) or named["name"] not in self._names:
            return self._no_call()
        opened = self._open(named["name"], inner[end:], 0)
        self._state = "gap"
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return [*opened, Arguments(self.num_calls - 1, text)]

    def _open(self, name: str, rest: str, depth: int) -> list[Piece]:
        """The call of a function; its arguments follow inside of `depth` objects."""
        if name not in self._names:
            return self._no_call()
        self._held, self._state, self._depth, self._closes = rest, "value", depth, depth
        self._in_string = self._escaped = False
        self.num_calls += 1
        return [Called(self.num_calls - 1, name)]

    def _no_call(self) -> list[Piece]:
        """What looked like one was text."""
        self._state, self._said = "text", True
        return self._content(self._convention.begin)

    def _value(self, final: bool) -> list[Piece]:
        """Arguments, up to the brace that closes them."""
        end = self._scan(self._closes)
        text, self._held = self._held[:end], self._held[end:]
        if self._depth == self._closes:
            self._state = "tail" if self._closes else "gap"
        return [Arguments(self.num_calls - 1, text)] if text else []

    def _tail(self, final: bool) -> list[Piece]:
        """The rest of the call's object."""
        end = self._scan(0)
        self._held = self._held[end:]
        if self._depth == 0:
            self._state = "gap"
        return []

    def _scan(self, depth: int) -> int:
        """How many of the held characters it takes to come down to `depth`; all if they do not."""
        for at, char in enumerate(self._held):
            if self._in_string:
                self._in_string = self._escaped or char != '"'
                self._escaped = char == "\\" and not self._escaped
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth <= depth:
                    self._depth = depth
                    return at + 1
        return len(self._held)

    def _gap(self, final: bool) -> list[Piece]:
        """Behind a call: the end mark, or another call."""
        if self.num_calls == self._most:
            self._state = "deaf"
            return []
        text, end = self._held.lstrip().removeprefix("]").lstrip(), self._convention.end.strip()
        if end and text.startswith(end):
            self._held, self._state = text[len(end) :], "text"
        elif (later := _LATER.match(text)) and not self._convention.name_end:
            self._held, self._state = text[later.end() :], "head"
        elif end.startswith(text) or text.rstrip() in (",", ";"):
            self._held = "" if final else self._held
        else:
            closed = self._held.lstrip().startswith("]")  # the list of calls
            self._held, self._state = self._held.lstrip()[1:] if closed else self._held, "text"
        return []


def overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-n:])), 0)
