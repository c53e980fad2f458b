"""What the threads of a job hand to the event loop, through a queue bounded in bytes."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import NamedTuple

from strandline_agent.errors import PipelineStopped
from strandline_agent.packing import Place
from strandline_contracts.points import Extent, Inode, Issue, Name

WAKE_BYTES = 256 * 1024
"""So much wakes the event loop: woken for each record it would change threads with every one."""
RECORD_BYTES = 160
"""What a record without long fields may take in a message, amply."""


class ChunkOut(NamedTuple):
    """A chunk to ship: stored bytes under `codec`, or (codec None) plain ones to be offered."""

    digest: bytes
    plain_bytes: int
    codec: int | None
    data: bytes
    places: list[Place]


class GoneName(NamedTuple):
    parent: int
    name: bytes


class GoneInode(NamedTuple):
    file: int


Item = ChunkOut | Inode | Name | Extent | Issue | GoneName | GoneInode


def cost_bytes(item: Item) -> int:
    """Return at least what `item` takes in a message."""
    if isinstance(item, ChunkOut):
        return RECORD_BYTES + len(item.data) + len(item.places) * 48
    if isinstance(item, Inode):
        xattrs = sum(len(name) + len(value) + 10 for name, value in item.xattrs)
        return RECORD_BYTES + len(item.target) + xattrs
    if isinstance(item, (Name, GoneName)):
        return 32 + len(item.name)
    if isinstance(item, Issue):
        return 64 + len(item.path) + 4 * len(item.text)
    return 48


class Outgoing:
    """A queue from threads to one coroutine; `put` waits while `max_bytes` are in it."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._items: deque[tuple[Item, int]] = deque()
        self._bytes = 0
        self._room = threading.Condition()
        self._stopped = False
        self._ended = False

    def put(self, *items: Item) -> None:
        """Add items, in order. Called in threads; raises PipelineStopped after `stop`."""
        with self._room:
            for item in items:
                while self._bytes >= self._max_bytes and not self._stopped:
                    self._room.wait()
                if self._stopped:
                    raise PipelineStopped("the job has stopped")
                cost = cost_bytes(item)
                self._items.append((item, cost))
                was_little = not self._is_much
                self._bytes += cost
                if was_little and self._is_much:
                    self._loop.call_soon_threadsafe(self._ready.set)

    @property
    def _is_much(self) -> bool:
        return self._bytes >= min(WAKE_BYTES, self._max_bytes)

    def end(self) -> None:
        """Tell that nothing more comes. Called in any thread."""
        with self._room:
            self._ended = True
        self._loop.call_soon_threadsafe(self._ready.set)

    def stop(self) -> None:
        """Let every `put` fail from now on."""
        with self._room:
            self._stopped = True
            self._room.notify_all()

    @property
    def stopped(self) -> bool:
        return self._stopped

    async def get(self, max_bytes: int) -> list[tuple[Item, int]]:
        """Return what is there with its costs, about `max_bytes` at most, once it is worth it.

        An empty list means the end.
        """
        while True:
            with self._room:
                if self._is_much or self._ended:
                    return self._take(max_bytes)
                self._ready.clear()
            await self._ready.wait()

    def _take(self, max_bytes: int) -> list[tuple[Item, int]]:
        taken: list[tuple[Item, int]] = []
        size = 0
        while self._items and size < max_bytes:
            taken.append(self._items.popleft())
            size += taken[-1][1]
        self._bytes -= size
        self._room.notify_all()
        return taken
