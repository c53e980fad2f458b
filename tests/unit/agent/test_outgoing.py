"""The queue from the threads to the event loop: when it wakes the loop, and its bound."""

from __future__ import annotations

import asyncio

import pytest

from strandline_agent.errors import PipelineStopped
from strandline_agent.outgoing import WAKE_BYTES, ChunkOut, GoneInode, Outgoing, cost_bytes

CHUNK = ChunkOut(b"d" * 32, 131072, 0, bytes(131072), [])


async def test_a_little_waits_until_it_is_much() -> None:
    out = Outgoing(10 * WAKE_BYTES)
    getting = asyncio.create_task(out.get(10 * WAKE_BYTES))
    out.put(GoneInode(1))
    await asyncio.sleep(0)
    assert not getting.done()
    await asyncio.to_thread(out.put, CHUNK, CHUNK)
    taken = await asyncio.wait_for(getting, 5)
    assert [item for item, _ in taken] == [GoneInode(1), CHUNK, CHUNK]


async def test_at_the_end_the_rest_comes_and_then_nothing() -> None:
    out = Outgoing(10 * WAKE_BYTES)
    out.put(GoneInode(1), GoneInode(2))
    out.end()
    assert [item for item, _ in await asyncio.wait_for(out.get(WAKE_BYTES), 5)] == [
        GoneInode(1),
        GoneInode(2),
    ]
    assert await asyncio.wait_for(out.get(WAKE_BYTES), 5) == []


async def test_a_queue_smaller_than_what_wakes_does_not_stand_still() -> None:
    out = Outgoing(2 * cost_bytes(GoneInode(0)))
    numbers = [GoneInode(number) for number in range(100)]

    def fill() -> None:
        out.put(*numbers)
        out.end()

    filling = asyncio.create_task(asyncio.to_thread(fill))
    found = []
    async with asyncio.timeout(10):
        while taken := await out.get(1000):
            found += [item for item, _ in taken]
    await filling
    assert found == numbers


async def test_after_stop_nothing_can_be_put() -> None:
    out = Outgoing(WAKE_BYTES)
    out.stop()
    with pytest.raises(PipelineStopped):
        out.put(GoneInode(1))
