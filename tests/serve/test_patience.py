"""Waiting ends with the event, or with patience, whichever comes first."""

import asyncio

from serve.patience import within


def test_an_event_ends_the_wait() -> None:
    async def scene() -> bool:
        event = asyncio.Event()
        asyncio.get_running_loop().call_soon(event.set)
        async with asyncio.timeout(5):
            await within(event, 60)
        return event.is_set()

    assert asyncio.run(scene())


def test_patience_ends_it_too_and_leaves_the_event_alone() -> None:
    async def scene() -> bool:
        event = asyncio.Event()
        async with asyncio.timeout(5):
            await within(event, 0.001)
        return event.is_set()

    assert not asyncio.run(scene())
