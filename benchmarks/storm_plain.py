"""The peer of the storm: the same engine as a plain Ray Serve deployment, and clients who count the streams that it loses.

Promise: what Serve does for a streaming deployment by itself: replicas on spot machines, health checks, replacement on a drain. Nobody
follows a stream, so one whose replica goes away is lost. Counted as lost is only what had begun and was cut off; a request that was
refused is asked again and counted apart. Price: none.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx
import ray
import ray.serve
from ray.serve.config import HTTPOptions
from starlette.requests import Request as HttpRequest
from starlette.responses import StreamingResponse

from benchmarks.storm_fleet import Schedule, Storm
from benchmarks.storm_waves import LAST_SHARE, NUM_SPOT, WARM_TOKENS
from pipelines.drill import fleet_of, replicas_running
from serve.app import MARKET, free_port, quiet_ray
from serve.engine.config import EngineConfig
from serve.engine.request import Emission, Request, Sampling
from serve.engine_thread import EngineThread, News

__all__ = ["Clients", "plain_application", "storm_plain"]

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
    """Streams that were cut off after they had begun."""
    num_refused: int = 0
    """Requests that never became streams: asked again, and not counted as lost."""
    num_going: int = 0
    """Streams that went on when the clients stopped."""
    stopping: bool = False
    failure: Exception | None = None
    _ends: dict[str, str] = field(default_factory=dict)

    async def run(self, count: int) -> None:
        """Keep `count` streams going until `stopping`."""
        limits = httpx.Limits(max_connections=count)
        try:
            async with httpx.AsyncClient(timeout=httpx.Timeout(120.0), limits=limits, trust_env=False) as client:
                await asyncio.gather(*(self._again(client, i) for i in range(count)))
        except Exception as error:  # raised in the main thread
            self.failure = error

    async def _again(self, client: httpx.AsyncClient, index: int) -> None:
        turn = 0
        while not self.stopping:
            name = f"plain-{index}-{turn}"
            self._ends[name] = "refused"
            with suppress(httpx.HTTPError, json.JSONDecodeError):  # however a stream is lost: a line may be cut, too
                await self._one(client, name, index)
            self.node_of.pop(name, None)
            end = self._ends.pop(name)
            self.num_done += end == "done"
            self.num_going += end == "going"
            self.num_refused += end == "refused"
            if end == "lost":
                self.lost.append(name)
            if end in ("lost", "refused"):
                await asyncio.sleep(0.5)  # as a client that tries again would
            turn += 1

    async def _one(self, client: httpx.AsyncClient, name: str, index: int) -> None:
        prompt = self.prompts[index % len(self.prompts)]
        body = {"id": name, "prompt": prompt, "max_tokens": self.tokens, "temperature": 0.8 * (index % 2), "seed": index}
        node, count = "", 0
        async with client.stream("POST", self.url, json=body) as response:
            if response.status_code != 200:
                return
            async for line in response.aiter_lines():
                said = json.loads(line)
                self._ends[name] = "lost"  # unless it is told otherwise
                node = said.get("node", node)
                count += len(said.get("tokens", ()))
                if WARM_TOKENS <= count <= LAST_SHARE * self.tokens:
                    self.node_of[name] = node
                else:
                    self.node_of.pop(name, None)
                if said.get("done") or self.stopping:
                    self._ends[name] = "done" if said.get("done") else "going"
                    return


def storm_plain(
    model: str, config: EngineConfig, prompts: list[list[int]], streams: int, tokens: int, schedule: Schedule, strikes: int
) -> dict[str, Any]:
    """The plain deployment under the same pauses and notices: figures as plain data."""
    with quiet_ray(), fleet_of(NUM_SPOT) as machines:
        port = free_port()
        ray.serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host="127.0.0.1", port=port))
        try:
            ray.serve.run(plain_application(model, config, NUM_SPOT), name=PLAIN, route_prefix="/plain")
            clients = Clients(f"http://127.0.0.1:{port}/plain", prompts, tokens)
            storm = Storm(machines, lambda: dict(clients.node_of), lambda: replicas_running(PLAIN, PLAIN) >= NUM_SPOT)
            thread = threading.Thread(target=lambda: asyncio.run(clients.run(streams)), name="clients", daemon=True)
            thread.start()
            for number in range(strikes):
                time.sleep(schedule.pause(number))  # the trace's
                if not storm.strike(number, schedule.notice(number), lambda: not thread.is_alive()):
                    raise RuntimeError(f"storm: the plain deployment's clients failed: {clients.failure}")
            time.sleep(schedule.notice_s)  # for what the last strikes bring about
            clients.stopping = True
            thread.join()
        finally:
            ray.serve.shutdown()
    hit = {stream for strike in storm.strikes for stream in strike.aimed}
    return {
        "streams": clients.num_done + len(clients.lost) + clients.num_going,
        "complete": clients.num_done,
        "lost": len(clients.lost),
        "hit": len(hit),
        "hit_and_lost": len(hit & set(clients.lost)),
        "refused": clients.num_refused,
        "strikes": [asdict(strike) for strike in storm.strikes],
    }
