"""Agent to store: opening a job, shipping its batches, and waiting until they are durable.

    agent                                   store
    Open (parent, attempt)        ->        Opened (credit) or an error that names the newest point
    Want (digests)                ->        Wanted (which are missing)       only where it may pay
    Batch 0, 1, 2 ...  on blk.            written, fsynced in order of `seq`, then acked
    Wait (seq)                    ->        Waited (durable up to which seq)
    End                on blk.            committed
    Wait (seq of End)             ->        Waited (state committed, the recovery point)

A delta is: every inode that is new or whose record changed, every name that is new or leads
elsewhere, every name and inode that is gone, and the extents of all changed blocks. Records may
come in any order, but a later `seq` wins over an earlier one. A file's new size ends all extents
beyond it. The bytes of a file's last block beyond its size are zero.
"""

from __future__ import annotations

from typing import Literal

from strandline_contracts.codec import Message, Record, decode
from strandline_contracts.points import (
    Consistency,
    Extent,
    Inode,
    Issue,
    Name,
    PointKind,
    RecoveryPoint,
    Totals,
)

MAX_OFFER = 1024
"""Digests in one Want."""


class Open(Message, frozen=True, kw_only=True, tag="open"):
    """Ask to ship job `job` of `source` on top of recovery point `parent` (0: none yet).

    `attempt` counts from 1 and grows with each try; a higher one fences the lower ones.
    `parent_digest` is the digest of the parent's manifest, empty for none.
    """

    source: str
    job: str
    attempt: int
    kind: PointKind
    parent: int
    parent_digest: bytes


class Opened(Message, frozen=True, kw_only=True, tag="opened"):
    """Leave to ship: at most `credit_bytes` in at most `credit_batches` may be not yet durable.

    `holds` tells whether the store has any chunk of this source, staged ones included: else
    offering digests cannot pay. If the job is already durable, `point` is its recovery point and
    there is nothing to ship.
    """

    credit_bytes: int
    credit_batches: int
    holds: bool
    point: RecoveryPoint | None = None
    damaged: bool = False
    """The replica has damaged chunks that this server may still have: see LostChunks."""


class Mismatch(Message, frozen=True, kw_only=True, tag="mismatch"):
    """The newest recovery point is not the parent that the agent named (None: there is none)."""

    newest: RecoveryPoint | None = None


class Want(Message, frozen=True, kw_only=True, tag="want"):
    """Offer chunks by their plain digests, at most MAX_OFFER."""

    source: str
    job: str
    attempt: int
    digests: list[bytes]


class Wanted(Message, frozen=True, kw_only=True, tag="wanted"):
    """The positions in the offer that the replica does not hold, rising."""

    missing: list[int]


class Chunk(Record, frozen=True):
    """A chunk as shipped: `data` is its stored bytes under `codec`.

    `digest` is BLAKE3 of the plain bytes, `plain_bytes` their number: a multiple of 4 KiB, at most
    128 KiB. With `data` None the store is told to use the chunk of this digest that it holds.
    It is a view of the message that it came in: a MiB is not copied once more.
    """

    digest: bytes
    plain_bytes: int
    codec: int
    data: memoryview | None


class Batch(Message, frozen=True, kw_only=True, tag="batch"):
    """A numbered part of a job's delta. Extents name chunks by position in this batch."""

    job: str
    attempt: int
    seq: int
    chunks: list[Chunk] = []
    extents: list[Extent] = []
    inodes: list[Inode] = []
    names: list[Name] = []
    gone_inodes: list[int] = []
    gone_names: list[tuple[int, bytes]] = []
    issues: list[Issue] = []


class End(Message, frozen=True, kw_only=True, tag="end"):
    """Closes a job: its `seq` is the number of batches before it.

    `digest` is BLAKE3 over the BLAKE3 digests (32 bytes each) of these batches' messages in order
    of `seq`: what was counted and sent is what is committed.
    """

    job: str
    attempt: int
    seq: int
    digest: bytes
    taken_at_ns: int
    consistency: Consistency
    provider: str
    tracker: str
    partial: bool
    totals: Totals


class Wait(Message, frozen=True, kw_only=True, tag="wait"):
    """Ask for an answer when batch `seq` is durable, the job has ended, or `timeout_ms` are up."""

    source: str
    job: str
    attempt: int
    seq: int
    timeout_ms: int = 2000


class LostChunks(Message, frozen=True, kw_only=True, tag="lost_chunks"):
    """Ask which chunks of `source` are damaged, ids above `after`, rising; answered by LostPage."""

    source: str
    after: int = 0


class LostChunk(Record, frozen=True):
    """A damaged chunk, and which blocks of which files it is made of.

    `pieces` are (file, start, blocks, chunk_block) of the newest recovery point; blocks of the
    chunk that no piece covers are in files no more, and only another site or a tape has them.
    """

    id: int
    digest: bytes
    plain_bytes: int
    pieces: list[tuple[int, int, int, int]]


class LostPage(Message, frozen=True, kw_only=True, tag="lost_page"):
    chunks: list[LostChunk]
    more: bool


class Mend(Message, frozen=True, kw_only=True, tag="mend"):
    """Offer the bytes of damaged chunks; the store takes those whose digest is the one it lost."""

    source: str
    chunks: list[Chunk]


class Mended(Message, frozen=True, kw_only=True, tag="mended"):
    """The ids of the chunks that are whole again."""

    chunks: list[int]


JobOnStore = Literal["open", "committed", "failed", "fenced", "unknown"]


class Waited(Message, frozen=True, kw_only=True, tag="waited"):
    """How far a job has come: batches below `durable` (a count) are safe.

    `unknown` asks for a new Open with a higher attempt; so does `failed` when `retryable`.
    """

    state: JobOnStore
    durable: int
    point: RecoveryPoint | None = None
    code: str = ""
    error: str = ""
    hint: str = ""
    retryable: bool = False


class Abort(Message, frozen=True, kw_only=True, tag="abort"):
    """Give a job up: what it staged may be forgotten. Answered by Waited (state failed)."""

    source: str
    job: str
    attempt: int
    reason: str


def accept_shipment(data: bytes | memoryview) -> Batch | End:
    """Return what a message on a `blk` subject holds, else raise BadMessage."""
    shipment: Batch | End = decode(data, Batch | End)  # type: ignore[arg-type]
    return shipment
