"""Blocks of 4 KiB: their digests, and the runs in which two states of a file differ. Pure."""

from __future__ import annotations

import threading
from typing import NamedTuple

from blake3 import blake3

from strandline_contracts.points import (
    BLOCK_BYTES,
    BLOCK_DIGEST_BYTES,
    EXTENT_DATA,
    EXTENT_HOLE,
    EXTENT_ZERO,
)

ZERO_DIGEST = blake3(bytes(BLOCK_BYTES)).digest(length=BLOCK_DIGEST_BYTES)
"""Stands for a block that is allocated and all zero."""
HOLE = bytes(BLOCK_DIGEST_BYTES)
"""Stands, in the place of a digest, for a block that is a hole."""


_one_at_a_time = threading.Lock()
"""BLAKE3 lets go of the interpreter lock for each block. Two threads that digest pass it to and fro
256 times a MiB, which costs more than the digests; one that reads or compresses meanwhile does not
mind."""


class Run(NamedTuple):
    """Consecutive blocks that have changed, all of one kind of extent."""

    start: int
    blocks: int
    kind: int


def blocks_of(size: int) -> int:
    """Return how many blocks `size` bytes take."""
    return (size + BLOCK_BYTES - 1) // BLOCK_BYTES


def digests(plain: memoryview | bytes) -> bytes:
    """Return the digests of the blocks of `plain` end to end; its length is a multiple of 4 KiB."""
    with _one_at_a_time:
        return b"".join(
            [
                blake3(plain[at : at + BLOCK_BYTES]).digest(length=BLOCK_DIGEST_BYTES)
                for at in range(0, len(plain), BLOCK_BYTES)
            ]
        )


def changed_runs(old: bytes | None, new: bytes, first: int = 0) -> list[Run]:
    """Return the runs in which digests `new` differ from `old`, counted from block `first` on.

    What `old` does not reach was a hole. With `old` None nothing is known: all blocks differ.
    """
    width = BLOCK_DIGEST_BYTES
    if old == new:
        return []
    runs: list[Run] = []
    start = blocks = 0
    kind = -1
    for at in range(0, len(new), width):
        digest = new[at : at + width]
        if old is not None and (old[at : at + width] or HOLE) == digest:
            this = -1
        elif digest == ZERO_DIGEST:
            this = EXTENT_ZERO
        else:
            this = EXTENT_HOLE if digest == HOLE else EXTENT_DATA
        if this != kind:
            if kind >= 0:
                runs.append(Run(first + start, blocks, kind))
            start, blocks, kind = at // width, 0, this
        blocks += 1
    if kind >= 0:
        runs.append(Run(first + start, blocks, kind))
    return runs
