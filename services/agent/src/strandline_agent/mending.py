"""Mending: the store has lost chunks to damage, and the source may still have their bytes.

A chunk is put together again from the blocks of the files that it was made of. If they are still
what they were, the store takes them back, and every recovery point that needs them is whole again.
If not, the files are doubted: their blocks are compared with what the store can still read, so that
the recovery point being made is whole at least.
"""

from __future__ import annotations

import asyncio
import os
import stat as stat_module
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from blake3 import blake3

from strandline_agent.asking import ask
from strandline_agent.chunks import Compressor
from strandline_agent.errors import AgentError
from strandline_agent.known import PAGE_BLOCKS, KnownIndex
from strandline_agent.line import Line
from strandline_agent.rules import outermost
from strandline_agent.walk import open_file, open_unnoticed
from strandline_contracts.points import BLOCK_BYTES, CHUNK_BYTES, ROOT
from strandline_contracts.shipping import Chunk, LostChunk, LostChunks, LostPage, Mend, Mended
from strandline_runtime.patience import to_its_end

MAX_MENDED_BYTES = 256 * 1024 * 1024
"""Plain bytes that are read to mend in one job; the next job goes on."""
MAX_DEPTH = 4096
FRAME_BYTES = 4096
"""Kept free in a message for its own frame; a chunk's takes CHUNK_FRAME_BYTES."""
CHUNK_FRAME_BYTES = 64
PATIENCE_S = 30.0
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(slots=True)
class Mending:
    """What came of it: chunks that are whole again, and files that are doubted."""

    mended: int = 0
    doubted: int = 0


async def mend(
    line: Line, store: str, source: str, index: KnownIndex, paths: Sequence[bytes]
) -> Mending:
    """Give `store` what it has lost of `source` and `paths` still hold, and doubt the rest.

    `index` mirrors the newest recovery point, and collects no changes. Raises StrandlineError.
    """
    found = Mending()
    tree = Tree(index, paths)
    room_bytes = line.max_payload_bytes - FRAME_BYTES
    batch: list[Chunk] = []
    batch_bytes = 0
    try:
        async for lost in _lost(line, store, source):
            chunk = await to_its_end(asyncio.to_thread(tree.chunk, lost))
            if chunk is None:
                found.doubted += await to_its_end(asyncio.to_thread(_doubt, index, lost))
                continue
            assert chunk.data is not None
            size_bytes = len(chunk.data) + CHUNK_FRAME_BYTES
            if batch and batch_bytes + size_bytes > room_bytes:
                found.mended += await _offer(line, store, source, batch)
                batch, batch_bytes = [], 0
            batch.append(chunk)
            batch_bytes += size_bytes
        if batch:
            found.mended += await _offer(line, store, source, batch)
    finally:
        tree.close()
    return found


async def _lost(line: Line, store: str, source: str) -> AsyncIterator[LostChunk]:
    """Yield lost chunks, as many as one job mends."""
    after = 0
    left_bytes = MAX_MENDED_BYTES
    more = True
    while more and left_bytes > 0:
        request = LostChunks(source=source, after=after)
        page = await ask(line, store, "lost_chunks", request, LostPage, patience_s=PATIENCE_S)
        for lost in page.chunks:
            if lost.id <= after:
                raise AgentError("lost chunks that do not rise", code="store.bad_answer")
            after = lost.id
            left_bytes -= lost.plain_bytes
            if left_bytes < 0:
                return
            yield lost
        more = page.more and bool(page.chunks)


async def _offer(line: Line, store: str, source: str, chunks: list[Chunk]) -> int:
    request = Mend(source=source, chunks=chunks)
    answer = await ask(line, store, "mend", request, Mended, timeout_s=30.0, patience_s=PATIENCE_S)
    return len(answer.chunks)


def _doubt(index: KnownIndex, lost: LostChunk) -> int:
    """Have the files of a chunk read again, and those blocks compared with the store's."""
    pages = {
        (file, page)
        for file, start, blocks, _ in lost.pieces
        for page in range(start // PAGE_BLOCKS, (start + blocks - 1) // PAGE_BLOCKS + 1)
    }
    index.doubt(pages)
    return len({file for file, _ in pages})


class Tree:
    """The files of a data source as they are now, found by the names that the index knows.

    Of one thread at a time; no link is followed below the protected paths.
    """

    def __init__(self, index: KnownIndex, paths: Sequence[bytes]) -> None:
        self._index = index
        self._paths = outermost(paths)
        self._file = 0
        self._fd = -1
        self._compressor = Compressor()

    def close(self) -> None:
        """Close what is open."""
        if self._fd >= 0:
            os.close(self._fd)
        self._file, self._fd = 0, -1

    def chunk(self, lost: LostChunk) -> Chunk | None:
        """Return the chunk if the files still hold its bytes."""
        plain = self._plain(lost)
        if plain is None or blake3(plain).digest() != lost.digest:
            return None
        codec, data = self._compressor.stored(plain)
        return Chunk(lost.digest, len(plain), codec, memoryview(data))

    def _plain(self, lost: LostChunk) -> bytes | None:
        if not is_covered(lost):
            return None
        plain = bytearray(lost.plain_bytes)
        read: set[int] = set()
        for file, start, blocks, chunk_block in lost.pieces:
            own = set(range(chunk_block, chunk_block + blocks))
            if own <= read:
                continue
            read |= own
            try:
                fd = self._open(file)
                data = (
                    b"" if fd is None else os.pread(fd, blocks * BLOCK_BYTES, start * BLOCK_BYTES)
                )
            except OSError:
                return None
            # The last block of a file is filled up with zeros; what is missing else shows itself.
            at = chunk_block * BLOCK_BYTES
            plain[at : at + len(data)] = data
        return bytes(plain)

    def _open(self, file: int) -> int | None:
        """Return an open file, None where the index knows no way to it. Raises OSError."""
        if file != self._file:
            self.close()
            way = self._way(file)
            if way is None:
                return None
            self._fd = self._open_way(way)
            self._file = file
        return self._fd

    def _way(self, file: int) -> list[bytes] | None:
        """Return the names that lead from the root to `file`."""
        names: list[bytes] = []
        while file != ROOT:
            found = self._index.names_of(file)
            if not found or len(names) > MAX_DEPTH:
                return None
            file, name = found[0]
            names.append(name)
        return names[::-1]

    def _open_way(self, way: list[bytes]) -> int:
        base, below = protected(way, self._paths)
        folder = open_unnoticed(base, _OPEN_FOLDER)
        try:
            for name in below[:-1]:
                deeper = open_unnoticed(name, _OPEN_FOLDER | os.O_NOFOLLOW, folder)
                os.close(folder)
                folder = deeper
            return open_file(folder, below[-1])
        finally:
            os.close(folder)


def protected(way: Sequence[bytes], paths: Sequence[bytes]) -> tuple[bytes, list[bytes]]:
    """Return the folder as the person has named it, and the names that lead on from there.

    One folder is the root of the tree itself; several paths stand in it under their whole names.
    """
    if len(paths) == 1 and stat_module.S_ISDIR(os.lstat(paths[0]).st_mode):
        return paths[0], list(way)
    for path in paths:
        names = path.strip(b"/").split(b"/")
        if list(way[: len(names)]) == names:
            if len(way) > len(names):
                return path, list(way[len(names) :])
            return os.path.dirname(path), [names[-1]]
    raise FileNotFoundError("not below any protected path")


def is_covered(lost: LostChunk) -> bool:
    """Tell whether the pieces make up the chunk, each of its blocks. Pure."""
    end = lost.plain_bytes // BLOCK_BYTES
    if not 0 < lost.plain_bytes <= CHUNK_BYTES or lost.plain_bytes % BLOCK_BYTES:
        return False
    covered: set[int] = set()
    for _, start, blocks, chunk_block in lost.pieces:
        if start < 0 or chunk_block < 0 or blocks < 1 or chunk_block + blocks > end:
            return False
        covered.update(range(chunk_block, chunk_block + blocks))
    return len(covered) == end
