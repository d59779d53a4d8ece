"""Replicas in one process: real engines and their streams without Ray, and a board that shows them, to whom a test does what it likes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from serve.engine.engine import Engine
from serve.engine.kv_blocks import KvBlocks
from serve.engine.request import Request
from serve.migrate import Offer, Pulled, Standing
from serve.router import Board, Place
from serve.streams import Streams


class Killed(Exception):
    """What Ray says of a replica whose machine has vanished."""


@dataclass
class Fleet:
    """Replicas without Ray around real engines, and the board that shows them; `on` are things to do at points of a move."""

    engines: dict[str, Engine]
    reference: Engine | None = None
    """Of the same model, beside the fleet."""
    streams: dict[str, Streams] = field(default_factory=dict)
    board: Board = field(default_factory=Board)
    gone: set[str] = field(default_factory=set)
    closed: set[str] = field(default_factory=set)
    """Replicas that are full."""
    draining: set[str] = field(default_factory=set)
    on: dict[str, Callable[[], Any]] = field(default_factory=dict)
    """Point -> what happens there: look, stage 1, stage 2, …, taken (the destination has all), opened B (a stream at replica B)."""
    pulls: list[str] = field(default_factory=list)
    stage_s: float = 0.0
    """What a stage takes longer than it would."""

    def __post_init__(self) -> None:
        for name, engine in self.engines.items():
            self.streams[name] = Streams(engine, node_id=name, replica_id=name, actor=name, frame_s=0.0)
        self.board.register("spot", self)
        self.board.draining = lambda: self.draining

    def places(self, streams: Counter[str]) -> list[Place]:
        here = [name for name in self.streams if name not in self.gone]
        return [Place("spot", name, name, 99 if name in self.closed else streams.get(name, 0), 99) for name in here]

    def at(self, point: str) -> None:
        if (act := self.on.pop(point, None)) is not None:
            act()

    def kill(self, *names: str) -> None:
        self.gone.update(names)

    def leave(self, name: str, notice_s: float = 60.0) -> None:
        self.draining.add(name)
        self.streams[name].leave(time.time() + notice_s)

    def open(self, place: Place, request: Request, num_chars: int, ticket: str) -> Any:
        name = place.replica_id
        self.at(f"opened {name}")
        frames = self.streams[name].stream(request, num_chars, ticket)
        fleet = self

        async def alive() -> AsyncIterator[Any]:
            async for frame in frames:
                if name in fleet.gone:
                    raise Killed(name)
                yield frame
                fleet.at(f"{name} said {type(frame).__name__}")

        listened = alive()

        class Source:
            def __aiter__(self) -> AsyncIterator[Any]:
                return listened

            def cancel(self) -> None:
                asyncio.get_running_loop().create_task(frames.aclose())

        return Source()

    async def pull(self, place: Place, offer: Offer, ticket: str, left_s: float) -> Pulled:
        self.pulls.append(place.replica_id)
        if place.replica_id in self.gone:
            raise Killed(place.replica_id)
        work = asyncio.ensure_future(self.streams[place.replica_id].pull(Lent(self, offer), ticket, left_s))
        try:
            while not work.done():
                await asyncio.wait([work], timeout=0.005)
                if place.replica_id in self.gone:
                    raise Killed(place.replica_id)
        finally:
            work.cancel()
        self.at("taken")
        return await work

    def release(self, place: Place, ticket: str) -> None:
        if place.replica_id not in self.gone:
            self.streams[place.replica_id].puller.release(ticket)

    def num_pins(self, name: str) -> int:
        """Tickets under which a replica keeps KV."""
        return int(self.streams[name]._thread.ask(lambda engine: len(engine.scheduler.pins)).result(30))  # type: ignore[attr-defined]


@dataclass
class Lent:
    """The source as the destination reaches it."""

    fleet: Fleet
    offer: Offer
    stages: int = 0

    async def look(self) -> Standing:
        self.fleet.at("look")
        self.check()
        return await self.fleet.streams[self.offer.source].lender.look(self.offer.stream)

    async def stage(self, first: int, end: int, *, last: bool) -> AsyncIterator[KvBlocks]:
        self.stages += 1
        self.fleet.at("last stage" if last else f"stage {self.stages}")
        await asyncio.sleep(self.fleet.stage_s)
        async for blocks in self.fleet.streams[self.offer.source].lender.stage(self.offer.stream, first, end, last):
            self.check()
            yield blocks

    def check(self) -> None:
        if self.offer.source in self.fleet.gone:
            raise Killed(self.offer.source)
