"""A recovery point as the store tells it, asked page by page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future

from strandline_agent.asking import ask
from strandline_agent.blocks import HOLE
from strandline_agent.errors import AgentError
from strandline_agent.known import PAGE_BLOCKS, UNKNOWN
from strandline_agent.line import Line
from strandline_contracts.points import BLOCK_DIGEST_BYTES, Inode, RecoveryPoint
from strandline_contracts.reading import (
    BlockDigestPage,
    BlockDigests,
    ExtentPage,
    Extents,
    List,
    Listing,
    PointPage,
    Points,
    Resolve,
    Resolved,
)

FIRST = (-1, 0, 0)
"""The cursor before all extents."""


class StoreView:
    """A recovery point as the store tells it. `grant` is empty for the source's own server."""

    def __init__(
        self,
        line: Line,
        store: str,
        source: str,
        number: int,
        *,
        grant: bytes = b"",
    ) -> None:
        self.line = line
        self.store = store
        self.source = source
        self.number = number
        self.grant = grant

    @staticmethod
    async def newest(line: Line, store: str, source: str) -> RecoveryPoint | None:
        """Return the newest recovery point of a source, None when there is none."""
        newest: RecoveryPoint | None = None
        more = True
        while more:
            after = newest.number if newest else 0
            page = await ask(line, store, "points", Points(source=source, after=after), PointPage)
            newest = page.points[-1] if page.points else newest
            more = page.more and bool(page.points)
        return newest

    async def root(self) -> Inode | None:
        """Return the inode of the root folder."""
        return (await self.resolve([b""]))[0]

    async def resolve(self, paths: list[bytes]) -> list[Inode | None]:
        """Return the inode at each path, None where there is none."""
        request = Resolve(source=self.source, point=self.number, paths=paths, grant=self.grant)
        inodes = (await ask(self.line, self.store, "resolve", request, Resolved)).inodes
        if len(inodes) != len(paths):
            raise AgentError("the store has answered another question", code="store.bad_answer")
        return inodes

    async def entries(self, folders: list[int]) -> AsyncIterator[Listing]:
        """Yield the entries of `folders`, page by page."""
        left, after = folders, b""
        while left:
            request = List(
                source=self.source, point=self.number, folders=left, after=after, grant=self.grant
            )
            page = await ask(self.line, self.store, "list", request, Listing)
            if len(page.names) != len(page.inodes) or not 0 <= page.done <= len(left):
                raise AgentError(
                    "a listing of the store contradicts itself", code="store.bad_answer"
                )
            if not page.done and not page.names:
                raise AgentError("the store lists nothing and is not done", code="store.bad_answer")
            yield page
            after = page.names[-1].name if page.names else b""
            left = left[page.done :]
            if left and (not page.names or page.names[-1].parent != left[0]):
                after = b""

    async def extents(
        self, files: list[int], after: tuple[int, int, int] = FIRST
    ) -> AsyncIterator[ExtentPage]:
        """Yield the data and zero extents of `files` (none: of all), ordered by chunk."""
        more = True
        while more:
            request = Extents(
                source=self.source,
                point=self.number,
                files=files,
                after=after,
                grant=self.grant,
            )
            page = await ask(self.line, self.store, "extents", request, ExtentPage, timeout_s=30)
            yield page
            more = page.more and bool(page.extents)
            if page.extents:
                last = page.extents[-1]
                after = (last.chunk, last.file, last.start)

    async def pages(self, files: list[int]) -> set[tuple[int, int]]:
        """Return (file, page) of the pages of `files` that are not wholly holes."""
        asked = set(files)
        return {
            (extent.file, page)
            async for extents in self.extents(files)
            for extent in extents.extents
            if extent.file in asked
            for page in range(
                extent.start // PAGE_BLOCKS,
                (extent.start + extent.blocks - 1) // PAGE_BLOCKS + 1,
            )
        }

    async def digests(self, file: int, start: int, blocks: int) -> bytes:
        """Return the digests of blocks of a file, holes as HOLE.

        Blocks that the store cannot read are UNKNOWN, so that a hole differs from them too.
        """
        found = bytearray()
        while len(found) < blocks * BLOCK_DIGEST_BYTES:
            done = len(found) // BLOCK_DIGEST_BYTES
            request = BlockDigests(
                source=self.source,
                point=self.number,
                file=file,
                start=start + done,
                blocks=blocks - done,
                grant=self.grant,
            )
            page = await ask(
                self.line, self.store, "block_digests", request, BlockDigestPage, timeout_s=30
            )
            part = bytearray(page.digests[: (blocks - done) * BLOCK_DIGEST_BYTES])
            if not part or len(part) % BLOCK_DIGEST_BYTES:
                raise AgentError("the store sent no whole digests", code="store.bad_answer")
            _mark_unreadable(part)
            _mark_holes(part, start + done, page.holes)
            found += part
        return bytes(found)

    def fetcher(self, loop: asyncio.AbstractEventLoop) -> Callable[[int, int, int], Future[bytes]]:
        """Return a function for threads that asks for digests."""

        def fetch(file: int, start: int, blocks: int) -> Future[bytes]:
            return asyncio.run_coroutine_threadsafe(self.digests(file, start, blocks), loop)

        return fetch


def _mark_unreadable(digests: bytearray) -> None:
    """Make the zeros that stand for what the store cannot read UNKNOWN: they are HOLE here."""
    if HOLE not in digests:
        return
    width = BLOCK_DIGEST_BYTES
    for at in range(0, len(digests), width):
        if digests[at : at + width] == HOLE:
            digests[at : at + width] = UNKNOWN


def _mark_holes(digests: bytearray, first: int, holes: list[tuple[int, int]]) -> None:
    width = BLOCK_DIGEST_BYTES
    count = len(digests) // width
    for start, blocks in holes:
        begin = max(0, start - first)
        end = min(count, start - first + blocks)
        if begin < end:
            digests[begin * width : end * width] = HOLE * (end - begin)
