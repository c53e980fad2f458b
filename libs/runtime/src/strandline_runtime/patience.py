"""Waiting: for an event, so long at most; for work that is not to be left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait until `event` is set, so long at most; tell whether it is."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


async def to_its_end(work: Awaitable[T], stop: Callable[[], None] = lambda: None) -> T:
    """Return what `work` does; when this is cancelled, call `stop`, and wait for it even then.

    For work in threads, which use what the caller closes next.
    """
    working = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(working)
    finally:
        stop()
        await asyncio.wait({working})
