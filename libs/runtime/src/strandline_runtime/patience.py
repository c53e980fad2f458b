"""Waiting for work that is not to be left behind: its threads use what its caller closes next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def to_its_end(work: Awaitable[T], stop: Callable[[], None] = lambda: None) -> T:
    """Return what `work` does; when this is cancelled, call `stop`, and wait for it even then."""
    working = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(working)
    finally:
        stop()
        await asyncio.wait({working})
