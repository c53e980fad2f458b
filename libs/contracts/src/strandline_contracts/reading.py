"""Reading a recovery point from a store: restore, browse, check, tape and other sites alike.

Every request names a source and a point, and carries the encoded Signed Grant that allows it. An
operator, and the server to which the source is assigned, may read without a grant. Answers are
bounded by the bus's max_payload; `after` fields are cursors, so any request can be sent again.
"""

from __future__ import annotations

from strandline_contracts.codec import Message, Record
from strandline_contracts.points import Extent, Inode, Name, RecoveryPoint

NO_SUCH = "store.no_such"
"""The code with which a store refuses: a source that never shipped, a point, a file, a chunk."""


class Points(Message, frozen=True, kw_only=True, tag="points"):
    """Ask for recovery points with numbers above `after`, at most `limit`, rising."""

    source: str
    after: int = 0
    limit: int = 1000
    grant: bytes = b""


class PointPage(Message, frozen=True, kw_only=True, tag="point_page"):
    points: list[RecoveryPoint]
    more: bool


class Replicas(Message, frozen=True, kw_only=True, tag="replicas"):
    """Ask a store for its replicas: sources above `after`, rising."""

    after: str = ""


class ReplicaState(Record, frozen=True):
    """A replica as its store knows it. Times are Unix nanoseconds by the store's clock, 0 for none.

    `deleted` are the recovery points that an operator has deleted and that are still here; 0 among
    them stands for the whole replica. All that is deleted goes at `due_at_ns`. `verified_at_ns` is
    the oldest moment at which some part of it was last verified. `live_bytes` is what the kept
    recovery points need of `stored_bytes`, 0 while unknown.
    """

    source: str
    name: str
    type: str
    points: int
    newest: int
    stored_bytes: int
    live_bytes: int
    damaged_chunks: int
    inconsistent: str
    verified_at_ns: int
    deleted: list[int] = []
    due_at_ns: int = 0


class ReplicaPage(Message, frozen=True, kw_only=True, tag="replica_page"):
    replicas: list[ReplicaState]
    more: bool


class Resolve(Message, frozen=True, kw_only=True, tag="resolve"):
    """Ask which files `paths` are in the tree of `point`: names between slashes, from the root."""

    source: str
    point: int
    paths: list[bytes]
    grant: bytes = b""


class Resolved(Message, frozen=True, kw_only=True, tag="resolved"):
    """For each path asked its inode, or None where there is no such path."""

    inodes: list[Inode | None]


class List(Message, frozen=True, kw_only=True, tag="list"):
    """Ask for the entries of `folders` (file ids), in their order, names rising as bytes.

    The answer stops where it is full: ask again with the folders that are left, `after` being the
    last name that the first of them has given.
    """

    source: str
    point: int
    folders: list[int]
    after: bytes = b""
    grant: bytes = b""


class Listing(Message, frozen=True, kw_only=True, tag="listing"):
    """Entries and, one for each, their inodes. `done` folders of those asked are complete."""

    names: list[Name]
    inodes: list[Inode]
    done: int


class Extents(Message, frozen=True, kw_only=True, tag="extents"):
    """Ask for data and zero extents (holes are what no extent covers), ordered by chunk id.

    `files` limits it to these files (at most 1,000; none: all of the tree). The cursor is
    (chunk, file, start) of the last extent seen; zero extents have chunk 0 and come first.
    """

    source: str
    point: int
    files: list[int] = []
    after: tuple[int, int, int] = (-1, 0, 0)
    limit: int = 4096
    grant: bytes = b""


class ExtentPage(Message, frozen=True, kw_only=True, tag="extent_page"):
    extents: list[Extent]
    more: bool


class Chunks(Message, frozen=True, kw_only=True, tag="chunks"):
    """Ask for stored chunks by id, in this order, at most 64."""

    source: str
    point: int
    chunks: list[int]
    grant: bytes = b""


class StoredChunk(Record, frozen=True):
    """A chunk as it lies in the store: whoever decodes it checks `digest` over the plain bytes.

    `data` is a view of the message that it came in: a MiB is not copied once more.
    """

    id: int
    digest: bytes
    plain_bytes: int
    codec: int
    data: memoryview


class ChunkPage(Message, frozen=True, kw_only=True, tag="chunk_page"):
    """As many of the chunks asked, from the first on, as fit (at least one)."""

    chunks: list[StoredChunk]


class BlockDigests(Message, frozen=True, kw_only=True, tag="block_digests"):
    """Ask for the digests of `blocks` blocks of a file from `start` on, read from the disk anew."""

    source: str
    point: int
    file: int
    start: int
    blocks: int
    grant: bytes = b""


class BlockDigestPage(Message, frozen=True, kw_only=True, tag="block_digest_page"):
    """16 bytes a block, end to end: BLAKE3 cut, of 4 KiB (the last block zero-filled).

    A hole or zero block has the digest of 4 KiB of zeros. `holes` are runs (start, blocks) that are
    holes, so that they are told from allocated zeros.
    """

    digests: bytes
    holes: list[tuple[int, int]] = []
