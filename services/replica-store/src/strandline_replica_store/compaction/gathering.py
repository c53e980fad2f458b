"""What belongs together in a chunk, what is worth moving, and where rows point then: pure rules."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from strandline_contracts.points import CHUNK_BLOCKS
from strandline_replica_store.compaction.liveness import (
    ChunkUse,
    Live,
    Past,
    SegmentUse,
    Survey,
    bits,
)
from strandline_replica_store.replica.tree import spans

STORED_TO_LIVE_PERMILLE = 1120
"""Compaction is due above it: the bar is 1.15, and commits go on while it works."""
TOUCHED_TO_NEWEST_PERMILLE = 1200
"""So much more than it needs the newest state may touch: restoring it may take 1.5 x as long."""
LEFT_PERMILLE = 1020
"""So little is left of what is dead when a round ends."""
SEGMENT_DEAD_PERMILLE = 30
"""A segment is not rewritten for less."""
CHUNK_DEAD_PERMILLE = 60
"""A chunk that has lost no more is moved as it is."""
DEAD_MIN_BYTES = 8 * 1024 * 1024
"""For less nothing is moved."""
MANY_CRUMBS = 32
"""So many small segments are left alone."""
ALONE_BLOCKS = CHUNK_BLOCKS * 3 // 4
"""A run of so many blocks has a chunk for itself; shorter ones share."""


class Run(NamedTuple):
    """Blocks of a chunk, one after the other."""

    chunk: int
    first: int
    blocks: int


class Moved(NamedTuple):
    """Blocks of a chunk that lie in another now."""

    first: int
    blocks: int
    chunk: int
    chunk_block: int


def is_too_large(survey: Survey, *, force: bool) -> bool:
    """Tell whether so much is dead that it is to be given back."""
    dead = survey.stored_bytes - survey.live_bytes
    if force:
        return dead > 0
    too_much = survey.stored_bytes * 1000 > survey.live_bytes * STORED_TO_LIVE_PERMILLE
    return too_much and dead >= DEAD_MIN_BYTES


def is_scattered(survey: Survey, *, force: bool) -> bool:
    """Tell whether the newest state touches many more bytes than it needs."""
    waste = survey.touched_bytes - survey.newest_bytes
    if force:
        return waste > 0
    too_much = survey.touched_bytes * 1000 > survey.newest_bytes * TOUCHED_TO_NEWEST_PERMILLE
    return too_much and waste >= DEAD_MIN_BYTES


def victims(survey: Survey, fixed: frozenset[int], *, force: bool) -> list[int]:
    """Return the segments to rewrite, those with the most dead bytes for their size first.

    `fixed` are those that are not to be touched. With those returned gone, no more than
    LEFT_PERMILLE of what is live is left (or with `force` nothing dead).
    """
    left = survey.stored_bytes
    goal = 0 if force else survey.live_bytes * LEFT_PERMILLE // 1000
    found = []
    for number in sorted(survey.segments, key=lambda n: -_dead_permille(survey.segments[n])):
        use = survey.segments[number]
        worth = use.dead_bytes * 1000 > use.stored_bytes * (0 if force else SEGMENT_DEAD_PERMILLE)
        if number in fixed or not worth:
            continue
        if left <= goal:
            break
        left -= use.dead_bytes
        found.append(number)
    return found


def crumbs(survey: Survey, fixed: frozenset[int], small_bytes: int) -> list[int]:
    """Return the segments smaller than `small_bytes` when they are too many: each round leaves
    some."""
    small = [
        number
        for number, use in survey.segments.items()
        if use.stored_bytes < small_bytes and number not in fixed
    ]
    return small if len(small) > MANY_CRUMBS else []


def _dead_permille(use: SegmentUse) -> int:
    return use.dead_bytes * 1000 // max(use.stored_bytes, 1)


def is_sparse(use: ChunkUse, *, force: bool) -> bool:
    """Tell whether a chunk has lost so much that its blocks are worth moving one by one."""
    dead = use.plain_blocks - use.needed.bit_count()
    return dead * 1000 > use.plain_blocks * (0 if force else CHUNK_DEAD_PERMILLE)


# The newest state


def windows(rows: Iterable[Sequence[int]]) -> Iterator[list[Run]]:
    """Yield windows of rows (file, start, blocks, chunk, chunk_block), which come in this order.

    One holds the data blocks among CHUNK_BLOCKS of a file, counted from a multiple of that.
    """
    for _, pieces in groupby(_at_edges(rows), key=lambda piece: piece[0]):
        yield joined(run for _, run in pieces)


def _at_edges(rows: Iterable[Sequence[int]]) -> Iterator[tuple[tuple[int, int], Run]]:
    for file, start, blocks, chunk, chunk_block in rows:
        done = 0
        while done < blocks:
            number, inside = divmod(start + done, CHUNK_BLOCKS)
            count = min(blocks - done, CHUNK_BLOCKS - inside)
            yield (file, number), Run(chunk, chunk_block + done, count)
            done += count


def joined(runs: Iterable[Run]) -> list[Run]:
    """Join runs that go on where the one before ends."""
    found: list[Run] = []
    for run in runs:
        last = found[-1] if found else None
        if last and (last.chunk, last.first + last.blocks) == (run.chunk, run.first):
            found[-1] = Run(last.chunk, last.first, last.blocks + run.blocks)
        else:
            found.append(run)
    return found


def shared_blocks(rows: Iterable[Live]) -> dict[int, int]:
    """Return, as masks by chunk, the blocks that several rows of the newest state name.

    They belong to no one place: gathered for one file they would be scattered for the other.
    """
    once: dict[int, int] = {}
    again: dict[int, int] = {}
    for row in rows:
        mine = bits(row.chunk_block, row.blocks)
        known = once.get(row.chunk, 0)
        if known & mine:
            again[row.chunk] = again.get(row.chunk, 0) | (known & mine)
        once[row.chunk] = known | mine
    return again


def without(runs: Iterable[Run], left_out: Mapping[int, int]) -> list[Run]:
    """Return runs without the blocks in `left_out`, masks by chunk."""
    found: list[Run] = []
    for run in runs:
        mask = left_out.get(run.chunk, 0) & bits(run.first, run.blocks)
        if not mask:
            found.append(run)
            continue
        wanted = bits(run.first, run.blocks) & ~mask
        found.extend(Run(run.chunk, first, count) for first, count in spans(wanted))
    return found


def is_worth_gathering(
    runs: Sequence[Run],
    uses: Mapping[int, ChunkUse],
    sparse: frozenset[int],
    *,
    also_scattered: bool,
) -> bool:
    """Tell whether the blocks of a window are to be brought together in a chunk.

    They are when one of their chunks is sparse; or, `also_scattered`, when they lie in several
    chunks that hold other things than the newest state as well.
    """
    chunks = {run.chunk for run in runs}
    if not sparse.isdisjoint(chunks):
        return True
    if not also_scattered or len(chunks) < 2:
        return False
    return any(uses[chunk].newest != bits(0, uses[chunk].plain_blocks) for chunk in chunks)


# The past


def deaths(rows: Iterable[Past], kept: Sequence[int]) -> dict[tuple[int, int], int]:
    """Return for each (chunk, block) the newest kept recovery point that needs it.

    `kept` rises.
    """
    found: dict[tuple[int, int], int] = {}
    for row in rows:
        position = bisect_left(kept, row.died)
        last = kept[position - 1] if position else 0
        for block in range(row.chunk_block, row.chunk_block + row.blocks):
            key = (row.chunk, block)
            if last > found.get(key, -1):
                found[key] = last
    return found


# New chunks


def packed(groups: Iterable[Sequence[Run]]) -> Iterator[list[Run]]:
    """Yield the runs of new chunks of up to CHUNK_BLOCKS blocks.

    A group is not torn apart; long ones have a chunk alone, neighbours among the short ones share.
    """
    shared: list[Run] = []
    held = 0
    for group in groups:
        blocks = sum(run.blocks for run in group)
        if blocks >= ALONE_BLOCKS:
            yield list(group)
            continue
        if held + blocks > CHUNK_BLOCKS:
            yield joined(shared)
            shared, held = [], 0
        shared.extend(group)
        held += blocks
    if shared:
        yield joined(shared)


def moves(chunk: int, runs: Iterable[Run]) -> Iterator[tuple[int, Moved]]:
    """Yield, by old chunk, where the blocks of new chunk `chunk`, made of `runs`, lie now."""
    position = 0
    for run in runs:
        yield run.chunk, Moved(run.first, run.blocks, chunk, position)
        position += run.blocks


class Piece(NamedTuple):
    """A part of a row: blocks from `start` on, and where they lie."""

    start: int
    blocks: int
    chunk: int
    chunk_block: int


def repointed(
    start: int, blocks: int, chunk: int, chunk_block: int, moved: Sequence[Moved]
) -> list[Piece]:
    """Return the pieces that a row falls into when blocks of its chunk have moved, in order.

    `moved` rises and does not overlap. A row that nothing has changed for comes back as it is.
    """
    pieces: list[Piece] = []
    done = 0
    for move in moved:
        first = max(move.first - chunk_block, done)
        last = min(move.first + move.blocks - chunk_block, blocks)
        if first >= last:
            continue
        if first > done:
            pieces.append(Piece(start + done, first - done, chunk, chunk_block + done))
        at = move.chunk_block + chunk_block + first - move.first
        pieces.append(Piece(start + first, last - first, move.chunk, at))
        done = last
    if done < blocks:
        pieces.append(Piece(start + done, blocks - done, chunk, chunk_block + done))
    return pieces


def points_naming(born: Iterable[int], kept: Sequence[int]) -> set[int]:
    """Return the kept recovery points whose manifests name rows with these births.

    It is the first that is kept since. `kept` rises.
    """
    positions = {bisect_left(kept, number) for number in born}
    return {kept[position] for position in positions if position < len(kept)}


def filled(runs: Iterable[Run]) -> Iterator[list[Run]]:
    """Yield the runs of new chunks of CHUNK_BLOCKS blocks each, in the order of `runs`."""
    chunk: list[Run] = []
    room = CHUNK_BLOCKS
    for run in runs:
        done = 0
        while done < run.blocks:
            count = min(room, run.blocks - done)
            chunk.append(Run(run.chunk, run.first + done, count))
            done += count
            room -= count
            if not room:
                yield joined(chunk)
                chunk, room = [], CHUNK_BLOCKS
    if chunk:
        yield joined(chunk)
