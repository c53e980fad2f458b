"""What may follow what: pure rules over jobs, opens and batches."""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

from strandline_contracts.points import (
    BLOCK_BYTES,
    EXTENT_DATA,
    EXTENT_HOLE,
    EXTENT_ZERO,
    Extent,
    Inode,
    RecoveryPoint,
)
from strandline_contracts.shipping import Batch, JobOnStore, Open
from strandline_replica_store.errors import BadDelta, Fenced, Inconsistent

MAX_BLOCK = 1 << 51
"""Blocks of a file are numbered below this: 8 EiB."""
MAX_ID = (1 << 63) - 1
MAX_OWNER = MAX_MODE = (1 << 32) - 1
_JOB = re.compile(r"[0-9A-Za-z_-]{1,64}\Z")


class JobRow(NamedTuple):
    """A job as the store knows it; fields as in the table `job`."""

    job: str
    attempt: int
    server: str
    kind: str
    parent: int
    parent_digest: bytes
    state: JobOnStore
    durable: int
    part_bytes: int
    stored_bytes: int
    opened_at_ns: int
    code: str = ""
    error: str = ""
    hint: str = ""
    retryable: bool = False


class OpenVerdict(Enum):
    FRESH = "fresh"
    """Begin the attempt; it fences what was open."""
    SAME = "same"
    """The attempt is open already: answer again."""
    MISMATCH = "mismatch"
    """Another recovery point is the newest."""


def as_parent(newest: RecoveryPoint | None) -> tuple[int, bytes]:
    """Return number and digest by which what follows the newest recovery point names it."""
    return (newest.number, newest.digest) if newest else (0, b"")


def judge_open(
    request: Open,
    server: str,
    known: JobRow | None,
    newest: RecoveryPoint | None,
    inconsistent: str,
) -> OpenVerdict:
    """Return what to do with an Open. Raises Fenced or Inconsistent.

    `known` is what the store knows of the same job, which is not committed. Raises BadDelta for a
    job that cannot be: its name becomes that of a file.
    """
    if not _JOB.match(request.job) or not 1 <= request.attempt <= MAX_ID:
        raise BadDelta(f"a job that cannot be: {request.job[:80]!r}, attempt {request.attempt}")
    if known is not None and request.attempt <= known.attempt:
        same = request.attempt == known.attempt and known.state == "open"
        if same and known.server == server:
            return OpenVerdict.SAME
        raise Fenced(
            f"attempt {request.attempt} of job {request.job} comes after {known.attempt}"
            f" ({known.state})"
        )
    if (request.parent, request.parent_digest) != as_parent(newest):
        return OpenVerdict.MISMATCH
    if inconsistent and request.kind != "check":
        raise Inconsistent(f"the replica is inconsistent: {inconsistent}")
    return OpenVerdict.FRESH


class Verdict(Enum):
    """What to do with a numbered message of a job."""

    TAKE = "take"
    EARLY = "early"
    DROP = "drop"
    """Acknowledge and forget: it is durable, fenced, or its job has ended."""
    UNKNOWN = "unknown"
    """Poison: nobody opened such an attempt."""


def judge_message(
    row: JobRow | None, server: str, attempt: int, seq: int, next_seq: int
) -> Verdict:
    """Return what to do with message `seq` of attempt `attempt`, `row` being its job's record."""
    if row is None or row.server != server or attempt > row.attempt:
        return Verdict.UNKNOWN
    if attempt < row.attempt or row.state != "open" or seq < next_seq:
        return Verdict.DROP
    return Verdict.TAKE if seq == next_seq else Verdict.EARLY


def resolved_extents(batch: Batch, ids: list[int], plain_bytes: list[int]) -> list[Extent]:
    """Return the batch's extents with chunk ids for positions; raise BadDelta."""
    return [_resolved(extent, ids, plain_bytes) for extent in batch.extents]


def _resolved(extent: Extent, ids: list[int], plain_bytes: list[int]) -> Extent:
    file, start, blocks, kind = extent.file, extent.start, extent.blocks, extent.kind
    if not (0 < file <= MAX_ID and start >= 0 and blocks > 0 and start + blocks <= MAX_BLOCK):
        raise BadDelta(f"an extent that cannot be: {extent}")
    if kind == EXTENT_DATA:
        if not 0 <= extent.chunk < len(ids):
            raise BadDelta(f"an extent of chunk {extent.chunk} in a batch of {len(ids)}")
        end = (extent.chunk_block + blocks) * BLOCK_BYTES
        if extent.chunk_block < 0 or end > plain_bytes[extent.chunk]:
            raise BadDelta(f"an extent that leaves its chunk: {extent}")
        return Extent(file, start, blocks, EXTENT_DATA, ids[extent.chunk], extent.chunk_block)
    if kind in (EXTENT_HOLE, EXTENT_ZERO):
        return Extent(file, start, blocks, kind)
    raise BadDelta(f"an extent of unknown kind: {extent}")


def _can_be(inode: Inode) -> bool:
    """Tell whether a file of any system may be so: who restores it would stumble over the rest."""
    texts = (inode.target, *(name for name, _ in inode.xattrs))
    return (
        0 < inode.file <= MAX_ID
        and 0 <= inode.size <= MAX_BLOCK * BLOCK_BYTES
        and all(0 <= owner <= MAX_OWNER for owner in (inode.uid, inode.gid))
        and 0 <= inode.mode <= MAX_MODE
        and 0 <= inode.rdev <= MAX_ID
        and all(-MAX_ID <= time_ns <= MAX_ID for time_ns in (inode.mtime_ns, inode.atime_ns))
        and not any(b"\0" in text for text in texts)
    )


def check_records(batch: Batch) -> None:
    """Raise BadDelta when a batch's inodes, names or gone things cannot be."""
    for inode in batch.inodes:
        if not _can_be(inode):
            raise BadDelta(f"an inode that cannot be: {inode.file}, {inode.size} bytes")
    for name in batch.names:
        if name.name in (b"", b".", b"..") or b"/" in name.name or b"\0" in name.name:
            raise BadDelta(f"a name that cannot be: {name.name!r}")
        if not (0 < name.parent <= MAX_ID and 0 < name.file <= MAX_ID):
            raise BadDelta(f"a name between files that cannot be: {name}")
    gone = [*batch.gone_inodes, *(parent for parent, _ in batch.gone_names)]
    if gone and not (min(gone) > 0 and max(gone) <= MAX_ID):
        raise BadDelta("a gone file that cannot be")
