"""Waiting for an event, but not for ever. Pure."""

from __future__ import annotations

import asyncio
from contextlib import suppress

__all__ = ["within"]


async def within(event: asyncio.Event, seconds: float) -> None:
    """Return when the event is set, or after `seconds`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
