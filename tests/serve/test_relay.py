"""A stream is followed through replicas that hand over, die, fall silent and refuse, without any of them being real."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from serve.engine.request import Request, Sampling
from serve.migrate import Begun, Done, Fresh, Moved, Record, Refused, Tokens
from serve.protocol import ApiError
from serve.relay import Journal, follow
from serve.router import Choice, Place, Wanted

ANSWER = tuple(range(10, 30))


class Script:
    """Sources that do what they are told, one after the other; each gets the request it is opened with."""

    def __init__(self, *acts: Callable[[Request, int], AsyncIterator[Any]]) -> None:
        self.acts, self.opened, self.cancelled, self.suspects = list(acts), [], 0, []

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
    monkeypatch.setattr("serve.relay.SILENCE_S", 0.05)

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
