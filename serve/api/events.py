"""An answer in the making, and how it leaves: whole, as JSON, or as server-sent events.

Promise: an answer that has nothing to say is kept alive with SSE comments; whoever stops reading stops the choices. Price: one queue.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve.api.answers import Answer
from serve.migrate import Fresh
from serve.protocol import ApiError

__all__ = ["EventStream", "News", "Run", "events", "next_news", "whole"]

_log = logging.getLogger(__name__)
KEEP_ALIVE_S = 5.0
"""A stream with nothing to say sends a comment this often, so that no proxy on the way gives it up."""
News = tuple[int, Fresh | ApiError | None]
"""A choice's index with what is new in it, why it failed, or None at its end."""


@dataclass(slots=True)
class Run:
    """An answer in the making: one task per choice, their news in one queue."""

    answer: Answer
    news: asyncio.Queue[News] = field(default_factory=asyncio.Queue)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def cancel(self) -> None:
        """Stop every choice that has not ended."""
        for task in self.tasks:
            task.cancel()


async def next_news(run: Run) -> News | None:
    """The next piece of news, None if there is none for a while; raises an error that comes before any token."""
    try:
        async with asyncio.timeout(KEEP_ALIVE_S):
            news = await run.news.get()
    except TimeoutError:
        return None
    if isinstance(news[1], ApiError):
        raise news[1]
    return news


async def whole(run: Run) -> dict[str, Any]:
    """The whole answer, once every choice has ended; raises what failed one of them."""
    ended = 0
    while ended < len(run.tasks):
        index, what = await run.news.get()
        if isinstance(what, ApiError):
            raise what
        if what is None:
            ended += 1
        else:
            run.answer.add(index, what)
    return run.answer.whole()


class EventStream(StreamingResponse):
    """The answer as an HTTP response; whatever happens to the connection, its choices stop with it."""

    def __init__(self, run: Run, first: News | None) -> None:
        """`first` is the first piece of news, None if there is none yet."""
        super().__init__(events(run, first), media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._run.cancel()


async def events(run: Run, news: News | None) -> AsyncIterator[bytes]:
    """The answer as server-sent events, from its first piece of news on."""
    ended = 0
    try:
        for chunk in run.answer.opening():
            yield _event(chunk)
        while True:
            if news is None:
                yield b": waiting for a machine\n\n"
            elif news[1] is None:
                ended += 1
                for chunk in run.answer.closing(news[0]):
                    yield _event(chunk)
            elif (new := run.answer.add(news[0], news[1])) is not None:  # type: ignore[arg-type]
                yield _event(new)
            if ended == len(run.tasks):
                break
            news = await next_news(run)
        if run.answer.body.include_usage:
            yield _event(run.answer.usage_chunk())
    except ApiError as error:
        yield _event(error.body())
    except Exception:  # a connection that is cut tells a client nothing
        _log.exception("%s could not be written", run.answer.id)
        yield _event(ApiError(500, "the server failed; its log has the reason").body())
    finally:
        run.cancel()
    yield b"data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
