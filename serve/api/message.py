"""A chat's answer as it grows: its content, and its calls with their arguments.

Promise: the deltas, put together, are the message. Price: dictionaries. Source: OpenAI's API reference.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from serve.api.calls import Called, CallReader, Content, Piece
from serve.api.xml_calls import XmlCallReader

__all__ = ["Message"]


@dataclass(slots=True)
class Message:
    """One choice's message."""

    reader: CallReader | XmlCallReader | None
    """Finds the calls; None where there can be none."""
    only_calls: bool = False
    """Whether the answer is calls and nothing else: what an answer that was cut shows besides is the beginning of one."""
    content: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    """As OpenAI has them: id, type, function (name, arguments)."""

    def add(self, text: str) -> dict[str, Any]:
        """Take more of the answer's text; what is new as a delta, empty if nothing is certain yet."""
        if not text:
            return {}
        return self._take([Content(text)] if self.reader is None else self.reader.push(text))

    def finish(self) -> dict[str, Any]:
        """The delta of what was held back."""
        return {} if self.reader is None else self._take(self.reader.finish())

    def whole(self) -> dict[str, Any]:
        """The message, once it is finished."""
        if not self.calls:
            return {"role": "assistant", "content": self.content, "refusal": None}
        return {"role": "assistant", "content": self.content or None, "refusal": None, "tool_calls": self.calls}

    def _take(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        content = "" if self.only_calls else "".join(piece.text for piece in pieces if isinstance(piece, Content))
        self.content += content
        fresh: dict[int, dict[str, Any]] = {}
        for piece in pieces:
            if isinstance(piece, Called):
                head = {"id": f"call_{secrets.token_hex(12)}", "type": "function"}
                self.calls.append({**head, "function": {"name": piece.name, "arguments": ""}})
                fresh[piece.index] = {"index": piece.index, **head, "function": {"name": piece.name, "arguments": ""}}
            elif not isinstance(piece, Content):
                self.calls[piece.index]["function"]["arguments"] += piece.text
                new = fresh.setdefault(piece.index, {"index": piece.index, "function": {"arguments": ""}})
                new["function"]["arguments"] += piece.text
        return {**({"content": content} if content else {}), **({"tool_calls": list(fresh.values())} if fresh else {})}
