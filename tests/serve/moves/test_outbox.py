"""A stream's frames: merged, numbered from the answer's beginning, the end last, what is urgent at once."""

import asyncio
from typing import Any

from serve.engine.request import Emission
from serve.migrate import Done, Leaving, Moved, Offer, Tokens
from serve.moves.outbox import Outbox


def test_an_outbox_merges_what_waits_and_counts_on_from_where_the_request_stood() -> None:
    async def scenario() -> list[Any]:
        box = Outbox(3, 5)
        box.put(Emission(request_id="a", tokens=(7,), text="a"))
        box.put(Emission(request_id="a", tokens=(8, 9), text="bc"))
        frames = [await box.frame(1.0), await box.frame(0.01)]
        box.put(Emission(request_id="a", tokens=(1,), text="d", finish_reason="stop", num_drafted=4, num_accepted=3))
        frames.append(await box.frame(1.0))
        return frames

    first, beat, last = asyncio.run(scenario())
    assert first == Tokens(3, (7, 8, 9), 5, "abc")
    assert beat == Tokens(6, (), 8, "")
    assert last == Done(Tokens(6, (1,), 8, "d"), "stop", 0, 4, 3)


def test_an_outbox_sends_what_it_has_before_it_says_that_the_stream_moved() -> None:
    async def scenario() -> list[Any]:
        box = Outbox(0, 0)
        box.put(Emission(request_id="a", tokens=(7,), text="a"))
        box.put(Moved(None))
        return [await box.frame(1.0), await box.frame(1.0)]

    assert asyncio.run(scenario()) == [Tokens(0, (7,), 0, "a"), Moved(None)]


LEAVING = Leaving(0.0, Offer("actor", "r", "a"))


def test_leaving_is_told_first_and_changes_nothing_else() -> None:
    async def scenario() -> list[Any]:
        box = Outbox(0, 0)
        box.put(Emission(request_id="a", tokens=(7,), text="a", num_computed_tokens=5))
        box.put(LEAVING)
        frames = [await box.frame(1.0), await box.frame(1.0), await box.frame(0.01)]
        box.put(LEAVING)
        box.put(Moved(None))
        return [*frames, await box.frame(1.0), await box.frame(1.0)]

    assert asyncio.run(scenario()) == [LEAVING, Tokens(0, (7,), 0, "a", None, 5), Tokens(1, (), 1, ""), LEAVING, Moved(None)]


def test_only_what_is_urgent_ends_the_wait_for_more() -> None:
    async def waits(*news: Any) -> bool:
        box = Outbox(0, 0)
        for what in news:
            box.put(what)
        waiting = asyncio.create_task(box.wait(0.05))
        await asyncio.sleep(0.01)
        done = waiting.done()
        await waiting
        return not done

    more, end = Emission(request_id="a", tokens=(7,), text=""), Emission(request_id="a", tokens=(7,), text="", finish_reason="stop")
    assert asyncio.run(waits(more))
    assert not any(asyncio.run(waits(more, what)) for what in (end, LEAVING, Moved(None), RuntimeError("x")))
