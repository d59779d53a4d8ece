"""Streams that move between real engines in one process, with their KV, without it, and while replicas die at any point of the move."""

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.kv_blocks import KvBlocks
from serve.engine.request import Request, Sampling
from serve.migrate import Fresh, Offer, Pulled, Record, Standing
from serve.relay import Journal, Stay, follow
from serve.router import Board, Place
from serve.streams import Streams

BLOCK = 4
NAMES = "abc"


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
        while not work.done():
            await asyncio.wait([work], timeout=0.005)
            if place.replica_id in self.gone:
                work.cancel()
                raise Killed(place.replica_id)
        self.at("taken")
        return await work


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

    async def stage(self, first: int, *, last: bool) -> AsyncIterator[KvBlocks]:
        self.stages += 1
        self.fleet.at("last stage" if last else f"stage {self.stages}")
        async for blocks in self.fleet.streams[self.offer.source].lender.stage(self.offer.stream, first, last):
            self.check()
            yield blocks

    def check(self) -> None:
        if self.offer.source in self.fleet.gone:
            raise Killed(self.offer.source)


@pytest.fixture
def fleet(tiny_model_dir: Path, tiny_adapter_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """Three replicas that have computed nothing yet. Calls cost nothing here, so that KV pays even for a small model."""
    monkeypatch.setattr("serve.handover.CALL_S", 0.0)
    config = EngineConfig(dtype="float64", num_threads=1, block_size=BLOCK, adapters=(f"polite={tiny_adapter_dir}",), draft="off")
    made = Fleet({name: Engine.load(tiny_model_dir, config) for name in NAMES}, Engine.load(tiny_model_dir, config))
    yield made
    assert not +made.board._streams, "a place is kept that nobody uses"
    for name in NAMES:
        made.streams[name]._thread.ask(lambda engine: engine.check()).result(30)  # type: ignore[attr-defined]


SCHEMA = json.dumps({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {"type": "integer"}}}})
LONG = Sampling(max_tokens=120, temperature=1.2, seed=2, ignore_eos=True)
SAMPLINGS = {
    "greedy": replace(LONG, temperature=0.0),
    "seeded, logprobs": replace(LONG, logprobs=2),
    "stop strings": replace(LONG, stop=("zq", "ab\n\n", "\n\n\n")),
    "second choice": LONG,
    "adapter": LONG,
    "schema": replace(LONG, json_schema=SCHEMA, ignore_eos=False, min_tokens=100, temperature=0.8),
}


def asked(kind: str = "greedy", num_prompt: int = 50) -> Request:
    prompt = tuple(4 + (i * 37 + len(kind)) % 300 for i in range(num_prompt))
    choice = 1 if kind == "second choice" else 0
    return Request(id="r", prompt=prompt, sampling=SAMPLINGS[kind], choice=choice, adapter="polite" if kind == "adapter" else "")


@dataclass
class Heard:
    """What came of one request."""

    tokens: tuple[int, ...]
    text: str
    logprobs: list[float]
    finish_reason: str
    stays: list[Stay]

    @property
    def answer(self) -> tuple[Any, ...]:
        """What a client can see."""
        return self.tokens, self.text, self.finish_reason

    @property
    def ways(self) -> list[str]:
        return [stay.how for stay in self.stays]


def heard(fleet: Fleet, request: Request, at: int | None = None, then: Callable[[Stay], Any] = lambda stay: None) -> Heard:
    """Follow a request through the fleet; after `at` tokens do something to where it stays."""

    async def scenario() -> Heard:
        record, journal, parts = Record(request), Journal(), []
        todo = [(at, then)] if at is not None else []

        def send(fresh: Fresh) -> None:
            parts.append(fresh)
            if todo and len(record.tokens) >= todo[0][0]:
                todo.pop()[1](journal.stays[-1])

        await follow(record, fleet.board, fleet, send, journal=journal, max_wait_s=20)
        logprobs = [entry.logprob for part in parts for entry in part.logprobs or ()]
        text = "".join(part.text for part in parts)
        assert record.finish is not None
        await asyncio.sleep(0.05)  # cancelled sources are told
        return Heard(tuple(record.tokens), text, logprobs, record.finish.finish_reason, list(journal.stays))

    return asyncio.run(scenario())


def undisturbed(fleet: Fleet, request: Request) -> Heard:
    """The same request at a replica that the moves do not touch."""
    assert fleet.reference is not None
    found = heard(Fleet({"reference": fleet.reference}), request)
    assert found.ways == ["new"]
    return found


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_a_stream_moves_with_its_kv_and_nothing_is_computed_twice(kind: str, fleet: Fleet) -> None:
    want = undisturbed(fleet, asked(kind))
    fleet.gone.add("c")
    got = heard(fleet, asked(kind), 20, lambda stay: fleet.leave(stay.replica_id))
    assert got.answer == want.answer
    assert got.logprobs == pytest.approx(want.logprobs, abs=1e-9)
    assert got.ways == ["new", "kv"]
    first, second = got.stays
    assert (first.end, second.end) == ("moved", "done")
    assert second.num_computed is not None
    assert second.num_computed <= BLOCK
    assert second.num_bytes >= (50 + first.num_tokens - 1) // BLOCK * fleet.engines["a"].kv_block_bytes
    assert second.stages >= 2
    assert second.gap_s is not None
    assert "while decoding goes on" in second.why


def test_a_stream_moves_twice(fleet: Fleet) -> None:
    want = undisturbed(fleet, asked())
    fleet.on["b said Tokens"] = lambda: fleet.leave("b")
    got = heard(fleet, asked(), 20, lambda stay: fleet.leave(stay.replica_id))
    assert got.answer == want.answer
    assert got.ways == ["new", "kv", "kv"]
    assert all(stay.num_computed <= BLOCK for stay in got.stays[1:])


@pytest.mark.parametrize("point", ["look", "stage 1", "last stage", "taken"])
@pytest.mark.parametrize("victims", ["a", "b", "ab"])
def test_deaths_during_a_move_cost_nothing_but_time(point: str, victims: str, fleet: Fleet) -> None:
    want = undisturbed(fleet, asked())
    fleet.closed.add("c")  # the move goes from a to b
    fleet.on[point] = lambda: (fleet.kill(*victims), fleet.closed.clear())
    got = heard(fleet, asked(), 20, lambda stay: fleet.leave(stay.replica_id))
    assert got.answer == want.answer
    assert fleet.pulls[0] == "b"
    assert got.stays[-1].end == "done"
    assert got.stays[-1].replica_id == ("b" if victims == "a" else "c")


def test_while_no_place_is_free_the_source_goes_on(fleet: Fleet) -> None:
    want = undisturbed(fleet, asked())
    fleet.closed.update("bc")

    def leave(stay: Stay) -> None:
        fleet.leave(stay.replica_id)
        asyncio.get_running_loop().call_later(0.05, lambda: (fleet.closed.clear(), fleet.board.changed()))

    got = heard(fleet, asked(), 10, leave)
    assert got.answer == want.answer
    assert got.stays[0].num_tokens > 10
    assert got.ways in (["new"], ["new", "kv"])  # or it was done before there was a place


def test_no_place_until_the_deadline_waits_for_one_and_computes_again(fleet: Fleet) -> None:
    want = undisturbed(fleet, asked())
    fleet.closed.update("bc")

    def leave(stay: Stay) -> None:
        fleet.leave(stay.replica_id, notice_s=0.5)  # less than the margin: handed over at once
        asyncio.get_running_loop().call_later(0.3, lambda: (fleet.closed.clear(), fleet.board.changed()))

    got = heard(fleet, asked(), 10, leave)
    assert got.answer == want.answer
    assert got.ways == ["new", "recompute"]
    assert got.stays[1].why == "no place took it over before its source had gone"
    assert got.stays[1].gap_s > 0.2


def test_too_little_time_for_kv_is_said(fleet: Fleet) -> None:
    want = undisturbed(fleet, asked())
    fleet.streams["b"].puller.link.observe(1.0, 1e6)  # as good as no link
    fleet.gone.add("c")
    got = heard(fleet, asked(), 20, lambda stay: fleet.leave(stay.replica_id))
    assert got.answer == want.answer
    assert got.ways == ["new", "recompute"]
    assert got.stays[1].why.startswith("deadline: ")
    assert (got.stays[1].num_bytes, got.stays[1].stages) == (0, 1)
    assert got.stays[1].num_computed >= 70


def test_a_destination_without_room_takes_what_it_can(fleet: Fleet) -> None:
    want = undisturbed(fleet, asked())
    fleet.gone.add("c")
    given = []
    take = fleet.engines["b"].kv_in

    def little(ticket: str, blocks: KvBlocks) -> int:
        given.append(len(blocks.hashes))
        part = KvBlocks(blocks.kv_kind, blocks.block_bytes, blocks.parent, blocks.hashes[:3], blocks.data[:3])
        return take(ticket, part)

    fleet.engines["b"].kv_in = little  # type: ignore[method-assign]
    got = heard(fleet, asked(), 20, lambda stay: fleet.leave(stay.replica_id))
    assert got.answer == want.answer
    assert got.ways == ["new", "kv"]
    assert "no room beyond block 3" in got.stays[1].why
    assert got.stays[1].num_computed >= 70 - 3 * BLOCK - BLOCK
    assert len(given) == 1


def test_one_that_leaves_admits_nothing_and_takes_nothing_over(fleet: Fleet) -> None:
    fleet.streams["a"].leave(math.inf)  # the board does not know it yet
    fleet.streams["b"].leave(math.inf)
    got = heard(fleet, asked())
    assert [stay.end for stay in got.stays] == ["moved", "moved", "done"]
    assert got.ways == ["new", "bounce", "bounce"]
    assert [stay.num_tokens for stay in got.stays] == [0, 0, 120]
    with pytest.raises(RuntimeError, match="it leaves itself"):
        asyncio.run(fleet.streams["a"].pull(Lent(fleet, Offer("b", "b", "x")), "t", 1.0))


def test_a_source_that_falls_silent_after_it_was_taken_over_is_not_waited_for(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    want = undisturbed(fleet, asked())
    monkeypatch.setattr("serve.departure.FAREWELL_S", 0.05)
    fleet.gone.add("c")
    lender = fleet.streams["a"].lender
    monkeypatch.setattr(lender, "_tell", lambda news: None)  # its last word never arrives
    got = heard(fleet, asked(), 20, lambda stay: fleet.leave(stay.replica_id))
    assert got.answer == want.answer
    assert [stay.end for stay in got.stays] == ["lost", "done"]
    assert got.ways == ["new", "kv"]
