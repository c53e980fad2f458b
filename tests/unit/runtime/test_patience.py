"""What is waited for: events, and work whose threads use what its caller closes next."""

from __future__ import annotations

import asyncio
import threading

import pytest

from strandline_runtime.patience import set_within, to_its_end


async def test_it_returns_what_the_work_does_and_raises_what_it_raises() -> None:
    assert await to_its_end(asyncio.to_thread(lambda: 7)) == 7
    with pytest.raises(ZeroDivisionError):
        await to_its_end(asyncio.to_thread(lambda: 1 // 0))


async def test_a_cancelled_wait_stops_the_work_and_waits_for_its_end() -> None:
    began, stop, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        stop.wait()
        ended.set()

    waiting = asyncio.ensure_future(to_its_end(asyncio.to_thread(work), stop.set))
    await asyncio.to_thread(began.wait)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()


async def test_an_event_is_waited_for_so_long_at_most() -> None:
    event = asyncio.Event()
    assert not await set_within(event, 0.01)
    asyncio.get_running_loop().call_later(0.01, event.set)
    assert await set_within(event, 60)
    assert await set_within(event, 0)
