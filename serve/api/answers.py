"""OpenAI's answers: what is new in a stream -> the next chunk, and a finished stream -> the whole response.

Promise: the chunks of a stream, put together, are the whole response; text, finish reasons, usage and log probabilities have
OpenAI's shapes for both endpoints. Price: dictionaries. Source: OpenAI's API reference (`token_ids` follows vLLM).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from serve.api.chat import ChatRequest
from serve.api.completion import CompletionRequest
from serve.api.logprobs import Offset, TokenBytes, chat_logprobs, text_logprobs
from serve.api.message import Message
from serve.api.tools import Toolbox
from serve.engine.request import TokenLogprob
from serve.migrate import Fresh, Record

__all__ = ["Answer"]


@dataclass(slots=True)
class Answer:
    """One HTTP request's answer, however many choices it has."""

    body: CompletionRequest | ChatRequest
    id: str
    created: int
    """Unix seconds."""
    token_bytes: TokenBytes
    """A token's own bytes."""
    records: Sequence[Record]
    """One per choice, in order."""
    box: Toolbox | None = None
    """The tools that a chat's answer may call."""
    parts: list[list[Fresh]] = field(default_factory=list)
    """What has been added to each choice."""
    _offsets: list[Offset] = field(default_factory=list)
    """Where each choice's next chunk begins in the text of its tokens, as logprobs count it."""
    _messages: list[Message] = field(default_factory=list)
    """What each choice of a chat says and calls."""

    def __post_init__(self) -> None:
        self.parts = [[] for _ in self.records]
        self._offsets = [Offset() for _ in self.records]
        self._messages = [Message(None) if (box := self.box) is None else Message(box.reader(), box.mode != "auto") for _ in self.records]

    @property
    def chat(self) -> bool:
        """Whether this answers a chat."""
        return isinstance(self.body, ChatRequest)

    def opening(self) -> list[dict[str, Any]]:
        """The chunks before any token: a chat names the role."""
        return [self._chunk(i, delta={"role": "assistant", "content": ""}) for i in range(len(self.records))] if self.chat else []

    def add(self, index: int, fresh: Fresh) -> dict[str, Any] | None:
        """Take what is new in choice `index`; its chunk, or None while there is nothing to show."""
        self.parts[index].append(fresh)
        delta = self._messages[index].add(fresh.text) if self.chat else {"content": fresh.text} if fresh.text else {}
        if not (delta or fresh.logprobs or (self.body.return_token_ids and fresh.tokens)):
            return None
        logprobs = self._logprobs([fresh], self._offsets[index])
        extra = {"token_ids": list(fresh.tokens)} if self.body.return_token_ids else {}
        if self.chat:
            return self._chunk(index, delta=delta or {"content": ""}, logprobs=logprobs, extra=extra)
        return self._chunk(index, text=fresh.text, logprobs=logprobs, extra=extra)

    def closing(self, index: int) -> list[dict[str, Any]]:
        """The chunks of what was held back of choice `index`, and of why it ended."""
        if not self.chat:
            return [self._chunk(index, text="", finish=self._reason(index))]
        rest = self._messages[index].finish()
        last = self._chunk(index, delta={}, finish=self._reason(index))
        return [self._chunk(index, delta=rest), last] if rest else [last]

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk of a stream that asked for usage."""
        return {**self._head(chunk=True), "choices": [], "usage": self.usage()}

    def whole(self) -> dict[str, Any]:
        """The response of a request that does not stream."""
        choices = [{**self._choice(record), "index": index} for index, record in enumerate(self._returned())]
        return {**self._head(chunk=False), "choices": choices, "usage": self.usage()}

    def _returned(self) -> list[int]:
        """The records to return: all, or for each prompt the n with the highest mean log-probability per token, the best first."""
        computed, wanted = self.body.num_computed, self.body.n or 1
        if computed == wanted:
            return list(range(len(self.records)))
        groups = [range(first, first + computed) for first in range(0, len(self.records), computed)]
        return [index for group in groups for index in sorted(group, key=self._mean_logprob, reverse=True)[:wanted]]

    def _mean_logprob(self, index: int) -> float:
        return fmean(entry.logprob for part in self.parts[index] for entry in part.logprobs or ())

    def usage(self) -> dict[str, Any]:
        """Tokens in and out; a prompt counts once, however many choices it has."""
        prompts = sum(len(r.request.prompt) for r in self.records if r.request.choice == 0)
        completion = sum(len(r.tokens) for r in self.records)
        cached = sum(r.finish.num_cached_tokens for r in self.records if r.finish and r.request.choice == 0)
        accepted = sum(r.finish.num_accepted for r in self.records if r.finish)
        drafted = sum(r.finish.num_drafted for r in self.records if r.finish)
        return {
            "prompt_tokens": prompts,
            "completion_tokens": completion,
            "total_tokens": prompts + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": drafted - accepted},
        }

    def _head(self, *, chunk: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.body.model}

    def _chunk(self, index: int, *, finish: str | None = None, logprobs: Any = None, extra: Any = None, **content: Any) -> dict[str, Any]:
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": finish, **(extra or {})}
        usage = {"usage": None} if self.body.include_usage else {}
        return {**self._head(chunk=True), "choices": [choice], **usage}

    def _choice(self, index: int) -> dict[str, Any]:
        text = "".join(part.text for part in self.parts[index])
        self._messages[index].finish()
        content = {"message": self._messages[index].whole()} if self.chat else {"text": text}
        extra = {"token_ids": list(self.records[index].tokens)} if self.body.return_token_ids else {}
        logprobs = self._logprobs(self.parts[index], Offset())
        return {**content, "logprobs": logprobs, "finish_reason": self._reason(index), **extra}

    def _reason(self, index: int) -> str:
        finish = self.records[index].finish
        assert finish is not None, f"choice {index} has not ended"
        called = self.box is not None and self._messages[index].calls and self.box.mode != "named"  # OpenAI says "stop" of a named one
        return "tool_calls" if called and finish.finish_reason == "stop" else finish.finish_reason

    def _logprobs(self, parts: Sequence[Fresh], offset: Offset) -> dict[str, Any] | None:
        if self.body.num_logprobs is None:
            return None
        entries: list[TokenLogprob] = [entry for part in parts for entry in part.logprobs or ()]
        return chat_logprobs(entries, self.token_bytes) if self.chat else text_logprobs(entries, self.token_bytes, offset)
