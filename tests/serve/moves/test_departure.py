"""The way out: where a stream goes on in each case, and that no place is kept which nobody uses."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from serve.engine.request import Request
from serve.engine.snapshot import Snapshot
from serve.migrate import Leaving, Moved, Offer, Pulled
from serve.moves.departure import NEW, Arrival, Departure
from serve.router import ANYWHERE, Choice, Place, Wanted

OFFER = Offer("actor", "source", "r#0")
TAKEN = Pulled("kv", "it pays", 100, 2, 0.1)


class World:
    """Places given in turn, and what pulling there does."""

    def __init__(self, *pulls: Callable[[], Awaitable[Pulled]]) -> None:
        self.pulls, self.kept, self.suspects, self.asked = list(pulls), Counter(), [], []
        self.left_s: list[float] = []
        self.cancelled, self.released = 0, []
        self.free = asyncio.Event()
        self.free.set()

    async def place(self, max_wait_s: float, wanted: Wanted) -> Choice | None:
        try:
            async with asyncio.timeout(max_wait_s):
                await self.free.wait()
        except TimeoutError:
            return None
        name = f"r{len(self.asked)}"
        self.asked.append(name)
        self.kept[name] += 1
        return Choice(Place("spot", name, "n", 0, 8), "a test")

    def leave(self, replica_id: str) -> None:
        self.kept[replica_id] -= 1

    def suspect(self, replica_id: str) -> None:
        self.suspects.append(replica_id)

    async def pull(self, place: Place, offer: Offer, ticket: str, left_s: float) -> Pulled:
        assert (offer, ticket) == (OFFER, "r@1")
        self.left_s.append(left_s)
        try:
            return await self.pulls.pop(0)()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def release(self, place: Place, ticket: str) -> None:
        assert ticket == "r@1"
        self.released.append(place.replica_id)


async def done() -> Pulled:
    return TAKEN


async def dies() -> Pulled:
    raise RuntimeError("the actor died")


async def loses() -> Pulled:
    return Pulled("crash", "lost in stage 2", 50, 2)


async def hangs() -> Pulled:
    await asyncio.Event().wait()
    raise AssertionError


def outcome(end: str, *pulls: Callable[[], Awaitable[Pulled]], free: bool = True, seconds: float = 60.0) -> tuple[Arrival, World]:
    """Begin, let it work for a moment, end the source."""

    async def scenario() -> tuple[Arrival, World]:
        world = World(*pulls)
        if not free:
            world.free.clear()
        departure = Departure(world, world, ANYWHERE, "r@1")
        departure.begin(Leaving(time.time() + seconds, OFFER))
        departure.begin(Leaving(time.time() + seconds, OFFER))
        await asyncio.sleep(0.02)
        arrival = await departure.outcome(end)
        departure.close()
        return arrival, world

    arrival, world = asyncio.run(scenario())
    here = arrival.choice.place.replica_id if arrival.choice else None
    assert +world.kept == ({here: 1} if here else {})
    assert here not in world.released
    return arrival, world


def test_a_stream_that_was_taken_over_follows_its_kv() -> None:
    for end in ("moved", "lost"):
        arrival, world = outcome(end, done)
        assert (arrival.pulled, arrival.ticket, arrival.choice.place.replica_id) == (TAKEN, "r@1", "r0")
        assert world.asked == ["r0"]


def test_a_stream_that_ends_meanwhile_keeps_no_place() -> None:
    for pull in (hangs, done):
        arrival, world = outcome("done", pull)
        assert (arrival, world.released) == (NEW, ["r0"])


def test_a_destination_that_dies_is_suspected_and_another_is_found() -> None:
    arrival, world = outcome("moved", dies, dies, done)
    assert (arrival.pulled, arrival.choice.place.replica_id, world.suspects) == (TAKEN, "r2", ["source", "r0", "r1"])


def test_a_source_that_dies_meanwhile_leaves_the_place_and_the_ticket() -> None:
    arrival, _ = outcome("lost", hangs)
    assert (arrival.pulled.how, arrival.ticket, arrival.choice.place.replica_id) == ("crash", "r@1", "r0")


def test_a_source_that_could_not_be_read_is_asked_again_from_the_same_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.moves.departure.RETRY_S", 0.001)
    arrival, world = outcome("moved", loses, loses, done)
    assert (arrival.pulled, arrival.choice.place.replica_id, world.asked) == (TAKEN, "r0", ["r0"])
    monkeypatch.setattr("serve.moves.departure.RETRY_S", 60.0)
    arrival, _ = outcome("lost", loses)
    assert (arrival.pulled.how, arrival.pulled.reason, arrival.ticket) == ("crash", "lost in stage 2", "r@1")


def test_a_destination_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.moves.departure.PULL_S", 0.02)
    arrival, world = outcome("moved", hangs)
    assert (arrival.pulled.how, arrival.choice, world.suspects) == ("recompute", None, ["source", "r0"])
    assert world.released == ["r0"]


@pytest.mark.parametrize(("end", "how"), [("moved", "recompute"), ("lost", "crash")])
def test_without_a_place_the_record_is_enough(end: str, how: str) -> None:
    arrival, world = outcome(end, free=False)
    assert (arrival.pulled.how, arrival.choice, world.asked) == (how, None, [])
    assert outcome(end, free=False, seconds=0.01)[0].pulled.how == how  # the deadline passed meanwhile


@pytest.mark.parametrize(("end", "how"), [("moved", "bounce"), ("lost", "crash")])
def test_without_notice(end: str, how: str) -> None:
    async def scenario() -> Arrival:
        departure = Departure(World(), World(), ANYWHERE, "r@1")
        arrival = await departure.outcome(end)
        departure.close()
        return arrival

    assert asyncio.run(scenario()).pulled.how == how


def test_a_wait_for_the_source_ends_soon_after_it_was_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.moves.departure.FAREWELL_S", 0.02)

    async def scenario(*, before: bool) -> float:
        world = World(done)
        departure = Departure(world, world, ANYWHERE, "r@1")
        departure.begin(Leaving(time.time() + 60, OFFER))
        await asyncio.sleep(0.01 if before else 0)
        began = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(30.0) as limit:
                departure.bound(limit)
                await asyncio.Event().wait()
        departure.bound(None)
        departure.close()
        return time.monotonic() - began

    assert asyncio.run(scenario(before=True)) < 10.0
    assert asyncio.run(scenario(before=False)) < 10.0


def test_a_source_that_goes_on_talking_after_it_was_taken_over_is_not_waited_for_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.moves.departure.FAREWELL_S", 0.05)

    async def scenario() -> float:
        world = World(done)
        departure = Departure(world, world, ANYWHERE, "r@1")
        departure.begin(Leaving(time.time() + 60, OFFER))
        began = time.monotonic()
        with suppress(TimeoutError):
            while time.monotonic() - began < 5.0:
                async with asyncio.timeout(30.0) as limit:
                    departure.bound(limit)
                    await asyncio.sleep(0.01)  # it says something, but not farewell
        departure.close()
        return time.monotonic() - began

    assert asyncio.run(scenario()) < 4.0


def test_a_source_that_is_lost_meanwhile_does_not_end_the_copying_of_what_is_for_use() -> None:
    _, world = outcome("lost", hangs)
    assert world.cancelled == 1, "by the end of the event loop"

    async def scenario() -> World:
        world = World(hangs)
        departure = Departure(world, world, ANYWHERE, "r@1")
        departure.begin(Leaving(time.time() + 60, OFFER))
        await asyncio.sleep(0.01)
        assert (await departure.outcome("lost")).ticket == "r@1"
        departure.close()
        await asyncio.sleep(0.01)
        assert (world.cancelled, world.released) == (0, [])
        return world

    asyncio.run(scenario())


@pytest.mark.parametrize("again", [1, 3])
def test_a_nearer_deadline_counts_whenever_it_is_told(again: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.moves.departure.RETRY_S", 0.01)

    async def scenario() -> World:
        world = World(loses, loses, done)
        departure = Departure(world, world, ANYWHERE, "r@1")
        departure.begin(Leaving(math.inf, OFFER))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for _ in range(again):
            departure.begin(Leaving(time.time() + 60, OFFER))
        departure.begin(Leaving(time.time() + 600, OFFER))
        assert (await departure.outcome("moved")).pulled == TAKEN
        departure.close()
        return world

    world = asyncio.run(scenario())
    assert world.left_s[0] == math.inf
    assert all(left_s < 61 for left_s in world.left_s[1:])
    assert world.asked == ["r0"]


def test_what_its_source_had_computed_is_told_by_its_last_word() -> None:
    async def scenario(*last: Moved) -> Arrival:
        world = World(done)
        departure = Departure(world, world, ANYWHERE, "r@1")
        departure.begin(Leaving(time.time() + 60, OFFER))
        await asyncio.sleep(0.01)
        for moved in last:
            departure.given_up(moved)
        return await departure.outcome("moved" if last else "lost")

    origin = Request(id="r", prompt=(1,) * 9)
    assert asyncio.run(scenario(Moved(Snapshot(origin=origin, emitted=(2,), num_computed=7)))).num_computed_before == 7
    assert asyncio.run(scenario(Moved(None))).num_computed_before is None
    assert asyncio.run(scenario()).num_computed_before is None


@pytest.mark.parametrize(("pull", "cancelled"), [(hangs, 1), (done, 0)])
def test_closing_frees_the_place_and_what_is_kept_there(pull: Callable[[], Awaitable[Pulled]], cancelled: int) -> None:
    async def scenario() -> World:
        world = World(pull)
        departure = Departure(world, world, ANYWHERE, "r@1")
        departure.begin(Leaving(time.time() + 60, OFFER))
        await asyncio.sleep(0.01)
        assert world.kept["r0"] == 1
        departure.close()
        departure.close()
        await asyncio.sleep(0)
        return world

    world = asyncio.run(scenario())
    assert (+world.kept, world.released, world.cancelled) == ({}, ["r0"], cancelled)
