"""Streams that move between real engines in one process, with their KV, without it, and while replicas die at any point of the move."""

import asyncio
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from serve.engine.config import EngineConfig
from serve.engine.engine import Engine
from serve.engine.kv_blocks import KvBlocks
from serve.engine.request import Request, Sampling
from serve.migrate import Fresh, Offer, Record
from serve.moves import handover
from serve.moves.relay import Journal, Stay, follow
from tests.replicas import Fleet, Lent

BLOCK = 4
NAMES = "abc"


@pytest.fixture
def fleet(tiny_model_dir: Path, tiny_adapter_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """Three replicas that have computed nothing yet. Calls cost nothing here, so that KV pays even for a small model."""
    monkeypatch.setattr("serve.moves.handover.CALL_S", 0.0)
    config = EngineConfig(dtype="float64", num_threads=1, block_size=BLOCK, adapters=(f"polite={tiny_adapter_dir}",), draft="off")
    made = Fleet({name: Engine.load(tiny_model_dir, config) for name in NAMES}, Engine.load(tiny_model_dir, config))
    yield made
    assert not +made.board._streams, "a place is kept that nobody uses"
    for name in NAMES:
        made.streams[name]._thread.ask(lambda engine: engine.check()).result(30)  # type: ignore[attr-defined]
        assert name in made.gone or made.num_pins(name) == 0, "KV is kept for nobody"


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
    assert second.num_computed_again is not None
    assert second.num_computed_again < second.num_computed <= BLOCK
    assert second.num_bytes >= (50 + first.num_tokens - 1) // BLOCK * fleet.engines["a"].kv_block_bytes
    assert second.stages >= 2
    assert second.gap_s is not None
    assert "while decoding goes on" in second.why


def test_a_grammar_is_compiled_where_its_stream_goes_while_it_goes_on(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """And never in an engine's thread, where it would hold up everybody else."""
    threads, before = [], []
    for engine in fleet.engines.values():
        plain = engine.grammars.prepare
        monkeypatch.setattr(
            engine.grammars, "prepare", lambda sampling, plain=plain: (threads.append(threading.current_thread().name), plain(sampling))
        )
    fleet.gone.add("c")
    fleet.on["taken"] = lambda: before.append(len(threads))
    got = heard(fleet, asked("schema"), 20, lambda stay: fleet.leave(stay.replica_id))
    assert got.ways == ["new", "kv"]
    assert (before, len(threads)) == ([2], 3), "where it began; where it goes, before it was taken; when it comes"
    assert "engine" not in threads


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
    slow_steps(fleet.engines["a"], 0.002)  # the stream is not at its end before it is taken over, however busy this machine is
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
    fleet.streams["b"].puller.link.rate.observe(1.0, 1e6)  # as good as no link
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
    assert got.ways == ["new", "recompute"]
    assert got.stays[1].why == "no room: of its KV 3 blocks came, and no more"
    assert got.stays[1].num_computed == got.stays[1].num_known - 3 * BLOCK
    assert got.stays[1].num_computed_again == got.stays[1].num_computed - 1
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
    monkeypatch.setattr("serve.moves.departure.FAREWELL_S", 0.05)
    fleet.gone.add("c")
    lender = fleet.streams["a"].lender
    monkeypatch.setattr(lender, "_tell", lambda news: None)  # its last word never arrives
    got = heard(fleet, asked(), 20, lambda stay: fleet.leave(stay.replica_id))
    assert got.answer == want.answer
    assert [stay.end for stay in got.stays] == ["lost", "done"]
    assert got.ways == ["new", "kv"]


def test_a_deadline_that_is_told_later_hastens_the_move(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stage takes long, and the stream adds to what is left: without a deadline there would be many more."""
    monkeypatch.setattr("serve.moves.handover.SHORT_S", 0.0)
    monkeypatch.setattr("serve.moves.handover.FEW_BLOCKS", 0)
    want = undisturbed(fleet, asked("greedy"))
    fleet.gone.add("c")
    fleet.stage_s = 0.1
    slow_steps(fleet.engines["a"], 0.015)

    def leave(stay: Stay) -> None:
        fleet.draining.add("a")
        fleet.streams["a"].leave(math.inf)
        fleet.on["stage 2"] = lambda: fleet.streams["a"].leave(time.time() + handover.MARGIN_S + 0.6)

    got = heard(fleet, asked(), 20, leave)
    assert got.answer == want.answer
    assert got.ways == ["new", "kv"]
    assert 3 <= got.stays[1].stages <= handover.MAX_STAGES


def slow_steps(engine: Engine, seconds: float) -> None:
    step = engine.step

    def slow() -> Any:
        time.sleep(seconds)
        return step()

    engine.step = slow  # type: ignore[method-assign]


def test_what_a_source_had_not_computed_itself_is_not_computed_again(fleet: Fleet) -> None:
    """It is struck in the middle of a long prompt, of which a step computes no more than a block."""
    request = replace(asked(num_prompt=200), sampling=replace(LONG, max_tokens=20))
    want = undisturbed(fleet, request)
    fleet.gone.add("c")
    fleet.engines["a"].scheduler.max_tokens = 2 * BLOCK
    slow_steps(fleet.engines["a"], 0.01)
    fleet.on["a said Begun"] = lambda: asyncio.get_running_loop().call_later(0.1, lambda: fleet.leave("a"))
    got = heard(fleet, request)
    assert got.answer == want.answer
    assert got.ways == ["new", "kv"]
    moved = got.stays[1]
    assert moved.num_known == 200
    assert 0 < moved.num_computed_before < 190
    assert moved.num_computed > BLOCK
    assert moved.num_computed_again < BLOCK


def test_what_was_copied_waits_with_its_stream_for_a_turn(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The destination is busy for longer than a ticket lasts that is not used."""
    monkeypatch.setattr("serve.engine.pins.PIN_S", 0.15)
    monkeypatch.setattr("serve.streams.BEAT_S", 0.02)
    want = undisturbed(fleet, asked())
    fleet.gone.add("c")
    busy = fleet.engines["b"]
    busy.scheduler.max_sequences = 1
    for name in "ab":
        slow_steps(fleet.engines[name], 0.005)
    fleet.streams["b"]._thread.add(Request(id="before", prompt=(5,), sampling=Sampling(max_tokens=120, ignore_eos=True)))
    kept: list[int] = []
    fleet.on["b said Begun"] = lambda: asyncio.get_running_loop().call_later(0.3, lambda: kept.append(fleet.num_pins("b")))
    got = heard(fleet, asked(), 20, lambda stay: fleet.leave(stay.replica_id))
    assert got.answer == want.answer
    assert got.ways == ["new", "kv"]
    assert got.stays[1].gap_s > 0.3
    assert kept == [1]


@pytest.mark.parametrize("point", ["stage 1", "last stage", "taken", "opened b"])
def test_a_client_who_leaves_during_a_move_leaves_no_kv_behind(point: str, fleet: Fleet) -> None:
    fleet.gone.add("c")
    slow_steps(fleet.engines["b"], 0.02)

    async def scenario() -> None:
        record, journal = Record(asked()), Journal()

        def send(fresh: Fresh) -> None:
            if len(record.tokens) >= 20 and not fleet.draining:
                fleet.leave("a")

        following = asyncio.create_task(follow(record, fleet.board, fleet, send, journal=journal, max_wait_s=20))
        reached = asyncio.Event()
        fleet.on[point] = lambda: (reached.set(), following.cancel())
        await reached.wait()
        await asyncio.gather(following, return_exceptions=True)
        assert following.cancelled()
        assert journal.stays[-1].first_s is None or len(journal.stays) == 1, "it was there"
        for _ in range(100):  # the replica learns of it
            await asyncio.sleep(0.01)
            if not (fleet.num_pins("b") or fleet.engines["a"].has_work or fleet.engines["b"].has_work):
                return
        raise AssertionError(f"{fleet.num_pins('b')} tickets are kept at the destination")

    asyncio.run(scenario())
