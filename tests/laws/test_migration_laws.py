"""The law of migration: sources leave, die, repeat themselves and fall silent, destinations fail and hang, places are missing, in any order
and at any moment; the client gets its answer, each token once, and no place and no KV is kept that nobody uses."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.engine.request import Request, Sampling
from serve.migrate import Begun, Done, Fresh, Leaving, Moved, Offer, Pulled, Record, Tokens
from serve.moves.relay import Journal, follow
from serve.router import Choice, Place, Wanted

ANSWER = tuple(range(10, 40))
TEXT = "".join(chr(97 + token % 26) for token in ANSWER)


def part(start: int, end: int) -> Tokens:
    return Tokens(start, ANSWER[start:end], start, TEXT[start:end])


class World:
    """Replicas that do anything, until the trouble is used up."""

    def __init__(self, random: Random, trouble: int) -> None:
        self.random, self.trouble = random, trouble
        self.kept: Counter[str] = Counter()
        self.stops: dict[str, asyncio.Event] = {}  # by stream: somebody takes it over
        self.num_opened = 0
        self.tickets: set[tuple[str, str]] = set()
        """What KV is kept under, and at which replica."""

    def troubled(self, chance: float) -> bool:
        if self.trouble and self.random.random() < chance:
            self.trouble -= 1
            return True
        return False

    async def pause(self) -> None:
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)

    async def place(self, max_wait_s: float, wanted: Wanted) -> Choice | None:
        await self.pause()
        if self.troubled(0.2):
            await asyncio.sleep(0.01)
        name = f"r{self.random.randrange(4)}"
        self.kept[name] += 1
        return Choice(Place("spot", name, name, 0, 8), "a law")

    def leave(self, replica_id: str) -> None:
        self.kept[replica_id] -= 1
        assert self.kept[replica_id] >= 0

    def suspect(self, replica_id: str) -> None:
        pass

    def open(self, place: Place, request: Request, num_chars: int, ticket: str) -> Any:
        assert request.emitted == ANSWER[: len(request.emitted)]
        assert num_chars == len(request.emitted)
        self.num_opened += 1
        name = f"{request.id}#{self.num_opened}"
        self.stops[name] = asyncio.Event()
        frames = self.frames(name, len(request.emitted), (place.replica_id, ticket))

        class Source:
            def __aiter__(self) -> AsyncIterator[Any]:
                return frames

            def cancel(self) -> None:
                pass

        return Source()

    async def frames(self, name: str, at: int, kept: tuple[str, str]) -> AsyncIterator[Any]:
        yield Begun("n", name)
        if self.troubled(0.1):
            yield Moved(None)  # bounced
            return
        left = False
        while at < len(ANSWER):
            await self.pause()
            if self.stops[name].is_set():
                if self.troubled(0.3):
                    await asyncio.Event().wait()  # its last word never comes
                yield Moved(None)
                return
            if not left and self.troubled(0.3):
                left = True
                yield Leaving(time.time() + self.random.choice([60.0, 0.005]), Offer("actor", name, name))
            if self.troubled(0.1):
                raise RuntimeError("the actor died")
            if self.troubled(0.05):
                return
            if left and self.troubled(0.1):
                yield Moved(None)  # the deadline came first
                return
            end = min(at + self.random.randrange(3), len(ANSWER))
            if end > at:
                self.tickets.discard(kept)  # as a replica does with a stream's first tokens
            yield part(max(at - self.random.randrange(3), 0), end)
            at = end
        self.tickets.discard(kept)
        yield Done(part(at, at), "length")

    def release(self, place: Place, ticket: str) -> None:
        self.tickets.discard((place.replica_id, ticket))

    async def pull(self, place: Place, offer: Offer, ticket: str, left_s: float) -> Pulled:
        self.tickets.add((place.replica_id, ticket))
        try:
            return await self.pulled(offer)
        except BaseException:  # its machine has gone, or it was cancelled
            self.tickets.discard((place.replica_id, ticket))
            raise

    async def pulled(self, offer: Offer) -> Pulled:
        await self.pause()
        if self.troubled(0.2):
            raise RuntimeError("the destination died")
        if self.troubled(0.1):
            await asyncio.Event().wait()
        if self.troubled(0.1):
            return Pulled("crash", "the source was lost")
        self.stops[offer.stream].set()
        await self.pause()
        if self.troubled(0.2):
            raise RuntimeError("the destination died in the last stage")
        return Pulled("kv", "a law", 1, 2)


@pytest.fixture(autouse=True, scope="module")
def _short_waits() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serve.moves.relay.SILENCE_S", 0.05)
        patch.setattr("serve.moves.relay.MAX_FRUITLESS", 99)
        patch.setattr("serve.moves.departure.FAREWELL_S", 0.01)
        patch.setattr("serve.moves.departure.PULL_S", 0.01)
        patch.setattr("serve.moves.departure.RETRY_S", 0.0)
        yield


@settings(max_examples=200)
@given(st.integers(0, 2**32).map(Random), st.integers(0, 12))
def test_whatever_happens_the_client_gets_each_token_once_and_no_place_is_kept(random: Random, trouble: int) -> None:
    async def scenario() -> tuple[list[Fresh], Record, Journal, World]:
        world, heard, journal = World(random, trouble), [], Journal()
        record = Record(Request(id="r", prompt=(1,), sampling=Sampling(seed=1)))
        await follow(record, world, world, heard.append, journal=journal, max_wait_s=5.0)
        await asyncio.sleep(0)
        return heard, record, journal, world

    heard, record, journal, world = asyncio.run(scenario())
    assert tuple(token for fresh in heard for token in fresh.tokens) == ANSWER == tuple(record.tokens)
    assert "".join(fresh.text for fresh in heard) == TEXT
    assert not +world.kept
    assert not world.tickets
    ends, ways = [stay.end for stay in journal.stays], [stay.how for stay in journal.stays]
    assert (ends[-1], ways[0]) == ("done", "new")
    assert set(ends[:-1]) <= {"moved", "lost"}
    assert set(ways[1:]) <= {"kv", "recompute", "crash", "bounce"}


@settings(max_examples=100)
@given(st.integers(0, 2**32).map(Random), st.integers(0, 12), st.integers(0, 60))
def test_a_client_that_leaves_at_any_moment_leaves_no_place_behind(random: Random, trouble: int, ticks: int) -> None:
    async def scenario() -> World:
        world = World(random, trouble)
        record = Record(Request(id="r", prompt=(1,), sampling=Sampling(seed=1)))
        task = asyncio.create_task(follow(record, world, world, lambda _: None, journal=Journal(), max_wait_s=5.0))
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)
        return world

    world = asyncio.run(scenario())
    assert not +world.kept
    assert not world.tickets
