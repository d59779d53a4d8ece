"""The peer of the storm: the same engine as a plain Ray Serve deployment, and clients who count the streams that it loses.

Promise: what Serve does for a streaming deployment by itself: replicas on spot machines, health checks, replacement on a drain. Nobody
follows a stream, so one whose replica goes away is lost. Price: none.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import ray
import ray.serve
from starlette.requests import Request as HttpRequest
from starlette.responses import StreamingResponse

from serve.app import MARKET
from serve.engine.config import EngineConfig
from serve.engine.request import Emission, Request, Sampling
from serve.engine_thread import EngineThread, News

__all__ = ["PLAIN", "Clients", "plain_application"]

PLAIN = "plain"


class PlainReplica:
    """An engine whose tokens go straight to the client."""

    def __init__(self, model: str, config: EngineConfig) -> None:
        from serve.engine.engine import Engine

        self._loop: asyncio.AbstractEventLoop | None = None
        self._queues: dict[str, asyncio.Queue[Any]] = {}
        self._node_id = ray.get_runtime_context().get_node_id()
        self._thread = EngineThread(Engine.load(model, config), self._deliver, lambda error: None)

    async def __call__(self, request: HttpRequest) -> StreamingResponse:
        """A stream of lines: the node, then token ids, then `done`."""
        self._loop = asyncio.get_running_loop()
        asked = await request.json()
        how = Sampling(max_tokens=asked["max_tokens"], temperature=asked["temperature"], seed=asked["seed"], ignore_eos=True)
        return StreamingResponse(self._lines(Request(id=asked["id"], prompt=tuple(asked["prompt"]), sampling=how)))

    async def _lines(self, request: Request) -> AsyncIterator[str]:
        queue = self._queues[request.id] = asyncio.Queue()
        self._thread.add(request)
        try:
            yield json.dumps({"node": self._node_id}) + "\n"
            ended = False
            while not ended:
                emission: Emission = await queue.get()
                ended = emission.finish_reason is not None
                yield json.dumps({"tokens": emission.tokens, "done": ended}) + "\n"
        finally:
            del self._queues[request.id]
            self._thread.cancel(request.id)

    def _deliver(self, news: list[News]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._sort, news)

    def _sort(self, news: list[News]) -> None:
        for name, what in news:
            if name in self._queues:
                self._queues[name].put_nowait(what)


def plain_application(model: str, config: EngineConfig, num_replicas: int) -> ray.serve.Application:
    """The deployment, on spot machines, health-checked as often as ours."""
    deployment = ray.serve.deployment(PlainReplica).options(
        name=PLAIN,
        num_replicas=num_replicas,
        max_ongoing_requests=256,
        ray_actor_options={"num_cpus": 1, "label_selector": {MARKET: "spot"}},
        health_check_period_s=2,
    )
    return deployment.bind(model, config)


@dataclass(slots=True)
class Clients:
    """So many streams at a time, each asked anew when it has ended, until told to stop."""

    url: str
    prompts: list[list[int]]
    tokens: int
    node_of: dict[str, str] = field(default_factory=dict)
    """Streams in the middle of generation: their node."""
    num_done: int = 0
    lost: list[str] = field(default_factory=list)
    stopping: bool = False

    async def run(self, count: int) -> None:
        """Keep `count` streams going until `stopping`, then let the last ones end."""
        limits = httpx.Limits(max_connections=count)
        async with httpx.AsyncClient(timeout=httpx.Timeout(120.0), limits=limits, trust_env=False) as client:
            await asyncio.gather(*(self._again(client, i) for i in range(count)))

    async def _again(self, client: httpx.AsyncClient, index: int) -> None:
        turn = 0
        while not self.stopping:
            name = f"plain-{index}-{turn}"
            done = False
            with suppress(httpx.HTTPError):  # however a stream is lost
                done = await self._one(client, name, index)
            self.node_of.pop(name, None)
            self.num_done += done
            if not done:
                self.lost.append(name)
                await asyncio.sleep(0.5)  # as a client that tries again would
            turn += 1

    async def _one(self, client: httpx.AsyncClient, name: str, index: int) -> bool:
        prompt = self.prompts[index % len(self.prompts)]
        body = {"id": name, "prompt": prompt, "max_tokens": self.tokens, "temperature": 0.8 * (index % 2), "seed": index}
        node, count = "", 0
        async with client.stream("POST", self.url, json=body) as response:
            if response.status_code != 200:
                return False
            async for line in response.aiter_lines():
                said = json.loads(line)
                node = said.get("node", node)
                count += len(said.get("tokens", ()))
                if count >= 20:
                    self.node_of[name] = node
                if said.get("done"):
                    return True
        return False
