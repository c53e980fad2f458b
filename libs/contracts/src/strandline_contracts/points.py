"""A recovery point, as every service speaks of it, and the records that a tree is made of."""

from __future__ import annotations

from typing import Literal

import msgspec

from strandline_contracts.codec import Record

BLOCK_BYTES = 4096
"""Extents are multiples of it."""
CHUNK_BLOCKS = 32
CHUNK_BYTES = BLOCK_BYTES * CHUNK_BLOCKS
"""The most plain bytes that a chunk holds."""
DIGEST_BYTES = 32
"""BLAKE3, of chunks, manifests and batches."""
BLOCK_DIGEST_BYTES = 16
"""BLAKE3 cut to 16 bytes, of single blocks, in the agent's index and in answers to it."""
ROOT = 1
"""The file id of the root folder of every tree."""

Consistency = Literal["application", "crash", "fuzzy"]
PointKind = Literal["express_full", "check"]

# Types of a file, as the letters that find -type prints.
FileType = Literal["f", "d", "l", "p", "s", "b", "c"]

# Codecs of a chunk's stored bytes.
CODEC_RAW = 0
CODEC_ZSTD = 1

# Kinds of extent.
EXTENT_DATA = 0
EXTENT_HOLE = 1
EXTENT_ZERO = 2
"""Allocated blocks that are all zero: nothing is shipped, a restore allocates them."""


class Extent(Record, frozen=True):
    """Blocks of a file and where their bytes are.

    `start` and `blocks` count blocks of 4 KiB, `chunk_block` the block inside the chunk. In a
    Batch, `chunk` is the position in the batch's chunks; in a manifest and in answers of the store
    it is the chunk's id. For holes and zeros `chunk` and `chunk_block` are 0.
    """

    file: int
    start: int
    blocks: int
    kind: int = EXTENT_DATA
    chunk: int = 0
    chunk_block: int = 0


class Inode(Record, frozen=True):
    """A file, folder, link or special file without its name.

    `file` is the id that the agent gave it: from 1 (the root), never used again in this source.
    Times are Unix nanoseconds, `birth_ns` is 0 when unknown. `target` is a symlink's text, `rdev`
    a device's number. ACLs are among the xattrs. `fs` and `ino` are how the agent knows it again.
    `changing` is true when the file changed while it was read, each time that it was tried.
    """

    file: int
    type: FileType
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ctime_ns: int
    atime_ns: int
    birth_ns: int
    fs: int
    ino: int
    rdev: int = 0
    target: bytes = b""
    xattrs: list[tuple[bytes, bytes]] = []
    changing: bool = False


class Name(Record, frozen=True):
    """An entry of the folder `parent` that leads to `file`; hard links are names of one file."""

    parent: int
    name: bytes
    file: int


class Issue(Record, frozen=True):
    """A path that a job could not keep or restore as it should, and why.

    `code` is stable: unreadable, vanished, changing, unsupported, too_long, stale (an older state
    of the path is kept), metadata (content is right, some attribute is not), damaged (what the
    store holds of it is).
    """

    path: bytes
    code: str
    text: str


class Totals(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a job saw and moved. Bytes are plain unless the name says otherwise."""

    files: int = 0
    """Inodes in the tree after the job, folders included."""
    bytes: int = 0
    """Sum of the sizes of the tree's regular files (apparent size)."""
    scanned_bytes: int = 0
    dirty_bytes: int = 0
    """Blocks found changed."""
    shipped_bytes: int = 0
    """Of these, plain bytes that travelled (the rest was held already)."""
    sent_bytes: int = 0
    """Stored (compressed) bytes that travelled."""
    issues: int = 0


class RecoveryPoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A state that can be restored.

    `digest` is that of its manifest, which names its parent's: it stands for the whole state.
    `partial` is true when some path is missing or stale (see the issues).
    """

    source: str
    number: int
    kind: PointKind
    job: str
    attempt: int
    parent: int
    parent_digest: bytes
    digest: bytes
    taken_at_ns: int
    received_at_ns: int
    consistency: Consistency
    provider: str
    tracker: str
    server: str
    partial: bool = False
    totals: Totals = Totals()
    stored_bytes: int = 0
    """What it added to the store's disk."""
