"""A stream is followed through replicas that hand over, die, fall silent and refuse, without any of them being real."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from serve.engine.request import Request, Sampling
from serve.engine.snapshot import Snapshot
from serve.migrate import Begun, Done, Fresh, Leaving, Moved, Offer, Pulled, Record, Refused, Tokens
from serve.moves.relay import Journal, follow
from serve.protocol import ApiError
from serve.router import Choice, Place, Wanted

ANSWER = tuple(range(10, 30))


class Script:
    """Sources that do what they are told, one after the other; each gets the request it is opened with."""

    def __init__(self, *acts: Callable[[Request, int], AsyncIterator[Any]]) -> None:
        self.acts, self.opened, self.cancelled, self.suspects, self.kept = list(acts), [], 0, [], []

    def open(self, place: Place, request: Request, num_chars: int, ticket: str) -> Any:
        self.opened.append(request)
        script, frames = self, self.acts.pop(0)(request, num_chars)

        class Source:
            def __aiter__(self) -> AsyncIterator[Any]:
                return frames

            def cancel(self) -> None:
                script.cancelled += 1

        return Source()

    async def place(self, max_wait_s: float, wanted: Wanted) -> Choice | None:
        return Choice(Place("spot", f"r{len(self.opened)}", "n", 0, 8), "a test") if self.acts else None

    def leave(self, replica_id: str) -> None:
        pass

    def suspect(self, replica_id: str) -> None:
        self.suspects.append(replica_id)

    async def pull(self, place: Place, offer: Offer, ticket: str, left_s: float) -> Pulled:
        self.kept.append((place.replica_id, ticket))
        return Pulled("kv", "it pays", 1, 2)

    def release(self, place: Place, ticket: str) -> None:
        self.kept.remove((place.replica_id, ticket))


def part(start: int, end: int) -> Tokens:
    return Tokens(start, ANSWER[start:end], start, "x" * (end - start))


def act(upto: int, ending: Any = None) -> Callable[[Request, int], AsyncIterator[Any]]:
    """Goes on from where the request stands to token `upto`, then: an exception to raise, a frame, None (just stops), or the end."""

    async def frames(request: Request, num_chars: int) -> AsyncIterator[Any]:
        at = len(request.emitted)
        assert request.emitted == ANSWER[:at]
        assert num_chars == at
        yield Begun("n", f"at-{at}")
        for start in range(at, upto, 3):
            yield part(start, min(start + 3, upto))
        if upto == len(ANSWER):
            yield Done(Tokens(upto, (), upto, ""), "length")
        elif isinstance(ending, Exception):
            raise ending
        elif ending is not None:
            yield ending

    return frames


def run(script: Script) -> tuple[list[int], Record, Journal]:
    record, journal, heard = Record(Request(id="r", prompt=(1,), sampling=Sampling(seed=1))), Journal(), []

    def send(fresh: Fresh) -> None:
        heard.extend(fresh.tokens)

    asyncio.run(follow(record, script, script, send, journal=journal, max_wait_s=0.01))
    return heard, record, journal


def test_a_stream_survives_moves_deaths_and_ends_without_a_word() -> None:
    script = Script(act(4, Moved(None)), act(9, RuntimeError("the actor died")), act(15), act(len(ANSWER)))
    heard, record, journal = run(script)
    assert tuple(heard) == ANSWER
    assert (record.num_moves, record.num_deaths) == (1, 2)
    assert [stay.end for stay in journal.stays] == ["moved", "lost", "lost", "done"]
    assert [stay.num_tokens for stay in journal.stays] == [4, 5, 6, 5]
    assert script.suspects == ["at-0", "at-4", "at-9"]
    assert all(stay.first_s <= stay.last_s <= stay.end_s for stay in journal.stays)


def test_a_source_that_skips_tokens_is_cancelled_and_replaced() -> None:
    async def skips(request: Request, num_chars: int) -> AsyncIterator[Any]:
        yield part(0, 3)
        yield part(5, 8)
        yield part(8, 10)

    script = Script(skips, act(len(ANSWER)))
    heard, record, _ = run(script)
    assert tuple(heard) == ANSWER
    assert script.cancelled == 1
    assert record.num_deaths == 1


def test_a_silent_source_counts_as_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.moves.relay.SILENCE_S", 0.05)

    async def hangs(request: Request, num_chars: int) -> AsyncIterator[Any]:
        yield part(0, 3)
        await asyncio.Event().wait()

    script = Script(hangs, act(len(ANSWER)))
    assert tuple(run(script)[0]) == ANSWER
    assert script.cancelled == 1


def test_a_request_that_kills_is_given_up() -> None:
    with pytest.raises(ApiError, match="4 replicas in a row") as caught:
        run(Script(*[act(0, RuntimeError("crash"))] * 9))
    assert caught.value.status == 500


def test_a_refused_request_is_the_clients_mistake() -> None:
    with pytest.raises(ApiError, match="too long") as caught:
        run(Script(act(0, Refused("too long"))))
    assert caught.value.status == 400


def test_no_place_in_time_is_unavailable() -> None:
    with pytest.raises(ApiError, match="no replica became free") as caught:
        run(Script())
    assert (caught.value.status, caught.value.code) == (503, "no_capacity")


def test_a_client_that_leaves_cancels_its_source() -> None:
    script = Script(act(3, None))

    async def hangs(request: Request, num_chars: int) -> AsyncIterator[Any]:
        yield part(0, 3)
        await asyncio.Event().wait()

    script.acts = [hangs]

    async def scenario() -> Journal:
        journal, record = Journal(), Record(Request(id="r", prompt=(1,), sampling=Sampling(seed=1)))
        task = asyncio.create_task(follow(record, script, script, lambda _: None, journal=journal, max_wait_s=1))
        while not record.tokens:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return journal

    assert [stay.end for stay in asyncio.run(scenario()).stays] == ["cancelled"]
    assert script.cancelled == 1


async def leaves(request: Request, num_chars: int) -> AsyncIterator[Any]:
    """Tells three tokens, is taken over, and had computed all but the last of what it knew."""
    yield Begun("n", "r0")
    yield part(0, 3)
    yield Leaving(time.time() + 60.0, Offer("actor", "r0", "r#0"))
    await asyncio.sleep(0.01)
    yield Moved(Snapshot(origin=request, emitted=ANSWER[:3], num_computed=3))


async def silent(request: Request, num_chars: int) -> AsyncIterator[Any]:
    yield Begun("n", "r1")
    await asyncio.Event().wait()


async def goes_on(request: Request, num_chars: int) -> AsyncIterator[Any]:
    yield Begun("n", "r1")
    yield Tokens(3, ANSWER[3:], 3, "x" * (len(ANSWER) - 3), None, 2)
    yield Done(Tokens(len(ANSWER), (), len(ANSWER), ""), "length")


def test_a_stream_that_moved_says_what_was_computed_again_and_its_replica_gives_its_ticket_back() -> None:
    script = Script(leaves, goes_on)
    heard, _, journal = run(script)
    assert tuple(heard) == ANSWER
    stay = journal.stays[-1]
    assert (stay.how, stay.num_known, stay.num_computed_before, stay.num_computed, stay.num_computed_again) == ("kv", 4, 3, 2, 1)
    assert script.kept == [("r1", "r@1")], "the replica gives it back itself, with its first tokens"


def test_what_is_kept_for_a_client_who_leaves_before_the_first_token_there_is_given_back() -> None:
    script = Script(leaves, silent)

    async def scenario() -> Journal:
        journal, record = Journal(), Record(Request(id="r", prompt=(1,), sampling=Sampling(seed=1)))
        task = asyncio.create_task(follow(record, script, script, lambda _: None, journal=journal, max_wait_s=1))
        while len(script.opened) < 2:
            await asyncio.sleep(0.001)
        assert script.kept == [("r1", "r@1")]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return journal

    assert [(stay.how, stay.end) for stay in asyncio.run(scenario()).stays] == [("new", "moved"), ("kv", "cancelled")]
    assert script.kept == []


def test_what_is_kept_for_a_stream_that_is_given_up_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.moves.relay.MAX_FRUITLESS", 1)

    async def dies(request: Request, num_chars: int) -> AsyncIterator[Any]:
        yield Begun("n", "r0")
        yield Leaving(time.time() + 60.0, Offer("actor", "r0", "r#0"))
        await asyncio.sleep(0.01)
        raise RuntimeError("the actor died")

    script = Script(dies, goes_on)
    with pytest.raises(ApiError, match="it is given up"):
        run(script)
    assert script.kept == []
