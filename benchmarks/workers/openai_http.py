"""A served model as a worker: streams over HTTP, read with as little of the client's own work as may be.

Options: `url` (…/v1), `name` of the model and `key`. An answer carries its HTTP status too: one that was not let in has
no tokens. Each request has a connection of its own, opened when it arrives, as a client's would be.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.workers.protocol import Answer, Question, work


@dataclass(slots=True)
class Reply(Answer):
    """An answer over HTTP."""

    status: int = 0
    error: str = ""


class OpenAI:
    """A client of one address."""

    def load(self, model: str, options: dict[str, Any]) -> None:
        """Nothing to load but the address."""
        self._model = options.get("name") or Path(model).name
        url = urlsplit(options["url"])
        self._host, self._port, self._path = url.hostname or "127.0.0.1", url.port or 80, f"{url.path}/completions"
        self._key = options.get("key", "")

    def serve(self, questions: list[Question]) -> list[Reply]:
        """All questions at once, each from its arrival on."""
        return asyncio.run(self._all(questions))

    async def _all(self, questions: list[Question]) -> list[Reply]:
        began = time.perf_counter()
        return await asyncio.gather(*(self._one(question, began + question.at) for question in questions))

    async def _one(self, question: Question, at: float) -> Reply:
        await asyncio.sleep(at - time.perf_counter())
        reply = Reply()
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(self._request(question))
            reply.status = int((await reader.readline()).split()[1])
            while (await reader.readline()).strip():
                pass
            if reply.status != 200:
                reply.error = (await reader.read()).decode()
                reply.more([], time.perf_counter() - at)
                return reply
            await self._events(reader, reply, at)
        finally:
            writer.close()
        return reply

    async def _events(self, reader: asyncio.StreamReader, reply: Reply, at: float) -> None:
        while line := await reader.readline():  # the lines of chunked encoding between them begin otherwise
            if not line.startswith(b"data: {"):
                if line.startswith(b"data: [DONE]"):
                    return
                continue
            event = json.loads(line[6:])
            if "error" in event:
                reply.error = event["error"]["message"]
            elif tokens := event["choices"][0].get("token_ids"):
                reply.more(tokens, time.perf_counter() - at)

    def _request(self, question: Question) -> bytes:
        body = {
            "model": self._model,
            "prompt": question.prompt,
            "max_tokens": question.tokens,
            "temperature": question.temperature,
            "seed": question.seed,
            "ignore_eos": not question.end,
            "stream": True,
            "return_token_ids": True,
        }
        raw = json.dumps(body).encode()
        key = f"authorization: Bearer {self._key}\r\n" if self._key else ""
        head = f"POST {self._path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n{key}connection: close\r\n"
        return f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw


if __name__ == "__main__":
    work(OpenAI())
