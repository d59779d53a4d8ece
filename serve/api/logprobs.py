"""Log probabilities as OpenAI writes them, for both endpoints.

Promise: a token is its own bytes, also where it is a part of a character: those of all tokens, put together, are the answer's text. Where a
part of a character has to be text, a chat shows U+FFFD (its `bytes` say more) and a completion `bytes:\\xf0\\x9f`, so that no two of
`top_logprobs` look alike. Price: dictionaries. Source: OpenAI's API reference.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable, Sequence
from typing import Any

from serve.engine.request import TokenLogprob

__all__ = ["Offset", "TokenBytes", "chat_logprobs", "text_logprobs"]

TokenBytes = Callable[[int], bytes]
"""A token's own bytes."""


class Offset:
    """Where the next token begins in the text of the tokens before it, in characters.

    >>> offset = Offset()
    >>> [offset.pass_over(part) for part in (b"a", b"\\xc3", b"\\xa9", b"b")]
    [0, 1, 1, 2]
    """

    def __init__(self) -> None:
        self._num_chars = 0
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def pass_over(self, token: bytes) -> int:
        """Where this token begins; the next one comes behind it."""
        begin = self._num_chars
        self._num_chars += len(self._decoder.decode(token))
        return begin


def text_logprobs(entries: Sequence[TokenLogprob], bytes_of: TokenBytes, offset: Offset) -> dict[str, Any]:
    """Of a completion, from `offset` on."""
    return {
        "tokens": [_text(bytes_of(entry.token)) for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [{_text(bytes_of(token)): logprob for token, logprob in entry.top} for entry in entries],
        "text_offset": [offset.pass_over(bytes_of(entry.token)) for entry in entries],
    }


def chat_logprobs(entries: Sequence[TokenLogprob], bytes_of: TokenBytes) -> dict[str, Any]:
    """Of a chat."""
    content = [
        {**_entry(bytes_of(e.token), e.logprob), "top_logprobs": [_entry(bytes_of(token), logprob) for token, logprob in e.top]}
        for e in entries
    ]
    return {"content": content, "refusal": None}


def _entry(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}


def _text(token: bytes) -> str:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
