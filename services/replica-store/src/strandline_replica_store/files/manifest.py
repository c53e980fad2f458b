"""Manifests: one immutable file a recovery point (docs/formats/replica.md, "Manifest")."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, TypeVar

import msgspec
from blake3 import blake3

from strandline_contracts.codec import Record, decode, encode
from strandline_contracts.errors import BadMessage
from strandline_contracts.points import (
    CODEC_RAW,
    CODEC_ZSTD,
    Consistency,
    Extent,
    Inode,
    Issue,
    Name,
    PointKind,
    RecoveryPoint,
    Totals,
)
from strandline_replica_store.errors import BadDelta, Damaged
from strandline_replica_store.files import durable
from strandline_replica_store.files.compression import compressed, decompressed, zstd

FRAME_MAX_BYTES = 8 * 1024 * 1024
FRAME_HEADER_BYTES = 64
HEAD, DELTA, TAIL = 1, 2, 3

_MAGIC = b"SLFR"
_FRAME = struct.Struct("<4sBBBxII16x12x4x")
_SELF_DIGEST_BYTES = 16
_COMPRESS_MIN_BYTES = 128

_T = TypeVar("_T")


class ChunkName(Record, frozen=True):
    """A chunk that the extents of a delta name."""

    id: int
    digest: bytes
    plain_bytes: int


class Delta(Record, frozen=True):
    """A part of what a recovery point changed; later deltas win over earlier ones."""

    chunks: list[ChunkName] = []
    extents: list[Extent] = []
    inodes: list[Inode] = []
    names: list[Name] = []
    gone_inodes: list[int] = []
    gone_names: list[tuple[int, bytes]] = []
    issues: list[Issue] = []


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What a manifest is and on which state it builds."""

    format: int
    source: str
    job: str
    attempt: int
    number: int
    parent: int
    parent_digest: bytes
    kind: PointKind
    server: str
    replaces: list[tuple[int, bytes]] = []


class Tail(msgspec.Struct, frozen=True, kw_only=True):
    """Closes a manifest; `digest` is that of all bytes before the tail's frame."""

    digest: bytes
    frames: int
    taken_at_ns: int
    received_at_ns: int
    consistency: Consistency
    provider: str
    tracker: str
    partial: bool
    totals: Totals
    stored_bytes: int


class Manifest(NamedTuple):
    """A whole manifest without its deltas, and the digest of the file."""

    head: Head
    tail: Tail
    digest: bytes

    @property
    def identity(self) -> bytes:
        """The digest of the recovery point: that of its manifest as it was first committed."""
        return self.head.replaces[0][1] if self.head.replaces else self.digest

    def point(self) -> RecoveryPoint:
        """Return the recovery point that the manifest makes."""
        head, tail = self.head, self.tail
        return RecoveryPoint(
            source=head.source,
            number=head.number,
            kind=head.kind,
            job=head.job,
            attempt=head.attempt,
            parent=head.parent,
            parent_digest=head.parent_digest,
            digest=self.identity,
            taken_at_ns=tail.taken_at_ns,
            received_at_ns=tail.received_at_ns,
            consistency=tail.consistency,
            provider=tail.provider,
            tracker=tail.tracker,
            server=head.server,
            partial=tail.partial,
            totals=tail.totals,
            stored_bytes=tail.stored_bytes,
        )


def pack_frame(kind: int, value: msgspec.Struct) -> bytes:
    """Return a frame; raise BadDelta when the value is larger than a frame may be."""
    plain = encode(value)
    if len(plain) > FRAME_MAX_BYTES:
        raise BadDelta(f"a frame of {len(plain)} bytes", retryable=False)
    codec, stored = CODEC_RAW, plain
    if len(plain) >= _COMPRESS_MIN_BYTES:
        codec, stored = compressed(plain)
    header = _FRAME.pack(_MAGIC, kind, codec, 0, len(plain), len(stored))
    return header + _frame_digest(header, stored) + stored


def _frame_digest(header: bytes, stored: bytes) -> bytes:
    return blake3(header).update(stored).digest(length=_SELF_DIGEST_BYTES)


class Frame(NamedTuple):
    kind: int
    plain: bytes
    raw: bytes
    """The frame as it lies in the file."""


def read_frame(file: BinaryIO) -> Frame | None:
    """Return the next frame, None at the end of the file; raise Damaged for anything else."""
    head = file.read(FRAME_HEADER_BYTES)
    if not head:
        return None
    if len(head) < FRAME_HEADER_BYTES:
        raise Damaged("a manifest that ends inside a frame")
    magic, kind, codec, cipher, plain_bytes, stored_bytes = _FRAME.unpack_from(head)
    if magic != _MAGIC or kind not in (HEAD, DELTA, TAIL) or cipher:
        raise Damaged("not a frame of version 1")
    if plain_bytes > FRAME_MAX_BYTES or stored_bytes > FRAME_MAX_BYTES:
        raise Damaged(f"a frame of {max(plain_bytes, stored_bytes)} bytes")
    stored = file.read(stored_bytes)
    header, digest = head[: _FRAME.size], head[_FRAME.size :]
    if len(stored) < stored_bytes or _frame_digest(header, stored) != digest:
        raise Damaged("a frame that does not match its digest")
    return Frame(kind, _plain(codec, plain_bytes, stored), head + stored)


def _plain(codec: int, plain_bytes: int, stored: bytes) -> bytes:
    plain = stored
    try:
        if codec == CODEC_ZSTD:
            plain = decompressed(stored, plain_bytes)
        elif codec != CODEC_RAW:
            raise Damaged(f"a frame of unknown codec {codec}")
    except zstd.ZstdError as error:
        raise Damaged(f"a frame that cannot be decompressed: {error}") from error
    if len(plain) != plain_bytes:
        raise Damaged("a frame whose length is not what it says")
    return plain


def check(path: str) -> Manifest:
    """Read a manifest through; return it without its deltas. Raise Damaged if it is not whole."""
    hasher = blake3()
    head: Head | None = None
    tail: Tail | None = None
    deltas = 0
    for frame in _frames(path):
        if tail is not None or (frame.kind == HEAD) != (head is None):
            raise Damaged(f"{os.path.basename(path)}: frames out of order")
        if frame.kind == HEAD:
            head = _decode(frame.plain, Head)
        elif frame.kind == DELTA:
            _decode(frame.plain, Delta)
            deltas += 1
        else:
            tail = _decode(frame.plain, Tail)
            if tail.digest != hasher.digest() or tail.frames != deltas:
                raise Damaged(f"{os.path.basename(path)}: the tail does not match")
        hasher.update(frame.raw)
    if head is None or tail is None:
        raise Damaged(f"{os.path.basename(path)}: no tail, so not a whole manifest")
    _check_head(path, head)
    return Manifest(head, tail, hasher.digest())


def head_of(path: str) -> Head:
    """Return the head of a manifest, the rest unread; raise Damaged, FileNotFoundError."""
    with open(path, "rb") as file:
        frame = read_frame(file)
    if frame is None or frame.kind != HEAD:
        raise Damaged(f"{os.path.basename(path)} does not begin with a head")
    head = _decode(frame.plain, Head)
    _check_head(path, head)
    return head


def _check_head(path: str, head: Head) -> None:
    name = os.path.basename(path)
    if head.format != 1:
        raise Damaged(f"{name}: format {head.format}")
    if head.replaces and head.replaces[0][0] != head.number:
        raise Damaged(f"{name}: replaces the manifest of another recovery point")


def deltas(path: str) -> Iterator[Delta]:
    """Yield the deltas of a manifest in order, each checked; raise Damaged."""
    for frame in _frames(path):
        if frame.kind == DELTA:
            yield _decode(frame.plain, Delta)


def _frames(path: str) -> Iterator[Frame]:
    with open(path, "rb", buffering=1024 * 1024) as file:
        try:
            while frame := read_frame(file):
                yield frame
        except Damaged as error:
            raise Damaged(f"{os.path.basename(path)}: {error.message}") from error


def _decode(data: bytes, kind: type[_T]) -> _T:
    try:
        return decode(data, kind)
    except BadMessage as error:
        raise Damaged(f"a frame that holds no {kind.__name__}: {error}") from error


def path_of(folder: str, number: int) -> str:
    """Return the path of manifest `number` below the manifests' folder."""
    return os.path.join(folder, f"{number:08d}.slm")


def numbers_in(folder: str) -> list[int]:
    """Return the numbers of the manifests in a folder, rising."""
    names = (name for name in os.listdir(folder) if name.endswith(".slm"))
    return sorted(int(name[:-4]) for name in names if name[:-4].isdigit())


class ManifestWriter:
    """A manifest that is being received, in a part file; used by one thread at a time."""

    def __init__(self, path: str, fd: int, head: Head) -> None:
        self.path = path
        self.head = head
        self._fd = fd
        self._hasher = blake3()
        self._pending: list[bytes | memoryview] = []
        self._frames = 0
        self.end_bytes = 0

    @classmethod
    def begin(cls, path: str, head: Head) -> ManifestWriter:
        """Make the part file with its head, durably."""
        writer = cls(path, durable.create(path), head)
        try:
            writer._take(pack_frame(HEAD, head))
            writer.flush()
            durable.sync_folder(os.path.dirname(path))
        except OSError:
            writer.close()
            durable.remove(path)
            raise
        return writer

    @classmethod
    def resume(cls, path: str, end_bytes: int) -> ManifestWriter:
        """Go on with a part file after `end_bytes`, cutting off the rest; raise Damaged."""
        with open(path, "rb") as file:
            frame = read_frame(file)
            if frame is None or frame.kind != HEAD:
                raise Damaged(f"{os.path.basename(path)} does not begin with a head")
            writer = cls(path, durable.open_for_append(path), _decode(frame.plain, Head))
            while frame is not None:
                writer._hasher.update(frame.raw)
                writer._frames += frame.kind == DELTA
                writer.end_bytes += len(frame.raw)
                if writer.end_bytes >= end_bytes:
                    break
                frame = read_frame(file)
        if writer.end_bytes != end_bytes:
            writer.close()
            raise Damaged(f"{os.path.basename(path)} is shorter than what was acknowledged")
        durable.truncate(writer._fd, end_bytes)
        return writer

    def _take(self, frame: bytes) -> None:
        self._pending.append(frame)
        self._hasher.update(frame)
        self.end_bytes += len(frame)

    def append(self, delta: Delta) -> None:
        """Take a delta for the next `flush`."""
        self._take(pack_frame(DELTA, delta))
        self._frames += 1

    def flush(self) -> None:
        """Bring everything that was appended to the disk. Raises OSError."""
        pending, self._pending = self._pending, []
        durable.write_all(self._fd, pending)
        durable.sync(self._fd)

    def finish(self, target: str, tail: Tail) -> Manifest:
        """Write the tail and rename the part file to `target`: after this the point exists.

        `tail.digest` and `tail.frames` are filled in here. Raises OSError.
        """
        tail = msgspec.structs.replace(tail, digest=self._hasher.digest(), frames=self._frames)
        self._take(pack_frame(TAIL, tail))
        self.flush()
        self.close()
        durable.rename(self.path, target)
        return Manifest(self.head, tail, self._hasher.digest())

    def close(self) -> None:
        self._pending = []
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
