"""Instruction data: pairs made from code, and conversations read from jsonl.

Promise: a pure function of the text: from each function with a docstring, signature and docstring as the request and the
body as the answer; what is kept parses, and is bounded in length. Price: one `ast.parse` per document (some MB/s).
Source: the docstring-to-body task of CodeSearchNet and HumanEval; the `messages` form is OpenAI's.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["REQUEST", "Message", "is_text", "pairs_from_code", "parse_conversation", "parse_messages"]

REQUEST = "Write the body of this function."
_MAX_REQUEST_CHARS = 1_500
_BODY_CHARS = (12, 1_500)
_SURROGATE = re.compile("[\ud800-\udfff]")
_ROLES = ("system", "user", "assistant")

Message = dict[str, str]
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class _Lines:
    """A function's source, dedented, in its two parts."""

    head: str
    """Signature and docstring."""
    body: str
    """Everything after the docstring."""


def pairs_from_code(text: str) -> list[list[Message]]:
    """One conversation (user, assistant) per documented function of a Python source, in the order of the source; none if it does not parse.

    >>> pair, = pairs_from_code('def double(x):\\n    "Twice x."\\n    return 2 * x\\n')
    >>> pair[1]
    {'role': 'assistant', 'content': '    return 2 * x'}
    >>> print(pair[0]["content"])
    Write the body of this function.
    <BLANKLINE>
    def double(x):
        "Twice x."
    """
    tree = _parse(text)
    if tree is None:
        return []
    lines = text.splitlines()
    functions = sorted((n for n in ast.walk(tree) if isinstance(n, _Function)), key=lambda n: (n.lineno, n.col_offset))
    return [_conversation(parts) for function in functions if (parts := _split(function, lines)) is not None]


def parse_conversation(line: str) -> list[Message]:
    """The conversation on one line of jsonl.

    Raises ValueError with a short reason: not_json, no_messages, bad_message, no_answer.

    >>> parse_conversation('{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}')[1]["content"]
    '4'
    """
    try:
        data = json.loads(line)
    except ValueError:
        raise ValueError("not_json") from None
    return parse_messages(data.get("messages") if isinstance(data, dict) else None)


def parse_messages(messages: Any) -> list[Message]:
    """A conversation's messages, with nothing but role and content; ValueError as `parse_conversation`."""
    if not isinstance(messages, list) or not messages:
        raise ValueError("no_messages")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in _ROLES or not is_text(message.get("content")):
            raise ValueError("bad_message")
    if not any(m["role"] == "assistant" and m["content"].strip() for m in messages) or messages[0]["role"] == "assistant":
        raise ValueError("no_answer")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def is_text(value: Any) -> bool:
    """Whether `value` is a string that UTF-8, and so a tokenizer, can hold: JSON may spell halves of surrogate pairs.

    >>> is_text("\\U0001f426"), is_text("\\ud83d"), is_text(None)
    (True, False, False)
    """
    return isinstance(value, str) and not _SURROGATE.search(value)


def _parse(text: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about other people's escape sequences
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _split(function: _Function, lines: list[str]) -> _Lines | None:
    """The function's head and body, or None where it has no docstring, no real body, or is too long."""
    if len(function.body) < 2 or ast.get_docstring(function) is None or _is_stub(function.body[1:]):
        return None
    first, last, documented = function.lineno - 1, function.end_lineno, function.body[0].end_lineno
    assert last is not None
    assert documented is not None
    if function.body[1].lineno <= documented:
        return None  # docstring and body share a line
    whole = textwrap.dedent("\n".join(lines[first:last])).splitlines()
    head, body = "\n".join(whole[: documented - first]), "\n".join(_trimmed(whole[documented - first :]))
    if len(head) > _MAX_REQUEST_CHARS or not _BODY_CHARS[0] <= len(body) <= _BODY_CHARS[1] or _parse(f"{head}\n{body}\n") is None:
        return None
    return _Lines(head, body)


def _conversation(parts: _Lines) -> list[Message]:
    return [{"role": "user", "content": f"{REQUEST}\n\n{parts.head}"}, {"role": "assistant", "content": parts.body}]


def _is_stub(body: list[ast.stmt]) -> bool:
    """Whether there is nothing to learn: pass, ..., or a bare raise."""
    first = body[0]
    bare = isinstance(first, ast.Pass | ast.Raise) or (isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant))
    return len(body) == 1 and bare


def _trimmed(lines: list[str]) -> Iterator[str]:
    """The lines without blank ones at either end."""
    full = [i for i, line in enumerate(lines) if line.strip()]
    return (line.rstrip() for line in lines[full[0] : full[-1] + 1]) if full else iter(())
