"""How changed blocks become chunks. Pure.

A run of 32 KiB or more makes chunks of its own, cut where the file's offset is a multiple of
128 KiB, so that the same content cut again gives the same chunks. Smaller pieces, of any files,
share chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from strandline_contracts.points import BLOCK_BYTES, CHUNK_BLOCKS

OWN_CHUNK_BLOCKS = 8
"""Pieces of so many blocks (32 KiB) stay alone."""


class Place(NamedTuple):
    """Blocks of a file, and from which block of a chunk they are taken."""

    file: int
    start: int
    blocks: int
    chunk_block: int


class Packed(NamedTuple):
    """The plain bytes of a chunk, and whose they are."""

    plain: bytes | memoryview
    places: list[Place]
    may_be_held: bool


def cut(start: int, blocks: int) -> Iterator[tuple[int, int]]:
    """Cut a run into pieces (start, blocks) at multiples of 128 KiB."""
    end = start + blocks
    while start < end:
        stop = min(end, (start // CHUNK_BLOCKS + 1) * CHUNK_BLOCKS)
        yield start, stop - start
        start = stop


class Packer:
    """Collects small pieces into chunks of up to 128 KiB."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._places: list[Place] = []
        self._blocks = 0
        self._may_be_held = True

    def add(
        self, file: int, start: int, plain: memoryview | bytes, may_be_held: bool
    ) -> list[Packed]:
        """Take one piece (at most 128 KiB) and return the chunks that are ready now.

        The bytes of a piece that stays alone are not copied: use the chunk before they change.
        """
        blocks = len(plain) // BLOCK_BYTES
        if blocks >= OWN_CHUNK_BLOCKS:
            return [Packed(plain, [Place(file, start, blocks, 0)], may_be_held)]
        ready = self.flush() if self._blocks + blocks > CHUNK_BLOCKS else []
        self._parts.append(bytes(plain))
        self._places.append(Place(file, start, blocks, self._blocks))
        self._blocks += blocks
        self._may_be_held = self._may_be_held and may_be_held
        return ready

    def flush(self) -> list[Packed]:
        """Return the chunk begun, if any."""
        if not self._parts:
            return []
        packed = Packed(b"".join(self._parts), self._places, self._may_be_held)
        self.__init__()  # type: ignore[misc]
        return [packed]
