"""Segments: append-only files of chunks (docs/formats/replica.md, "Segment")."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from blake3 import blake3

from strandline_contracts.points import BLOCK_BYTES, CHUNK_BYTES, CODEC_RAW
from strandline_replica_store.errors import BadChunk, Damaged
from strandline_replica_store.files import durable
from strandline_replica_store.files.chunk_check import STORED_MAX_BYTES, check_chunk

SEGMENT_LIMIT_BYTES = 256 * 1024 * 1024
SEGMENT_HEADER_BYTES = 64
CHUNK_HEADER_BYTES = 144
MAX_CHUNK_ID = (1 << 63) - 1

_SEGMENT_MAGIC = b"SLSEG\0\0\1"
_CHUNK_MAGIC = b"SLCK"
_SEGMENT = struct.Struct("<8sQ16s24x")
_CHUNK = struct.Struct("<4sBBBBQII16x12x12x32s32s8x")
_SELF_DIGEST_BYTES = 8


class ChunkHeader(NamedTuple):
    """What stands before a chunk's stored bytes."""

    id: int
    codec: int
    plain_bytes: int
    stored_bytes: int
    plain_digest: bytes
    stored_digest: bytes


def _sealed(header: bytes) -> bytes:
    return header + blake3(header).digest(length=_SELF_DIGEST_BYTES)


def _unsealed(data: bytes | memoryview, size_bytes: int) -> memoryview:
    view = memoryview(data)
    body, seal = view[: size_bytes - _SELF_DIGEST_BYTES], view[size_bytes - 8 : size_bytes]
    if len(view) < size_bytes or blake3(body).digest(length=_SELF_DIGEST_BYTES) != seal:
        raise Damaged("a header does not match its digest")
    return body


def pack_segment_header(number: int, source: str) -> bytes:
    """Return the 64 bytes with which segment `number` of `source` begins."""
    return _sealed(_SEGMENT.pack(_SEGMENT_MAGIC, number, source.encode("ascii")))


def parse_segment_header(data: bytes | memoryview) -> tuple[int, str]:
    """Return number and source of a segment, else raise Damaged."""
    magic, number, source = _SEGMENT.unpack(_unsealed(data, SEGMENT_HEADER_BYTES))
    if magic != _SEGMENT_MAGIC:
        raise Damaged("not a segment of version 1")
    try:
        return number, source.decode("ascii")
    except UnicodeDecodeError as error:
        raise Damaged("a segment of a source that is none") from error


def wrong_header(data: bytes | memoryview, number: int) -> str:
    """Return what is wrong with the header of segment `number`, "" for nothing."""
    try:
        found, _ = parse_segment_header(data)
    except Damaged as error:
        return f"segment {number}: {error.message}"
    return "" if found == number else f"segment {number} says that it is {found}"


def write_header_anew(folder: str, number: int, source: str) -> None:
    """Write the header of a segment that is there over the old one: all of it is known. Raises
    OSError."""
    fd = os.open(path_of(folder, number), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, pack_segment_header(number, source), 0)
        durable.sync(fd)
    finally:
        os.close(fd)


def pack_chunk_header(
    chunk: int,
    codec: int,
    plain_bytes: int,
    plain_digest: bytes,
    stored: bytes | memoryview,
) -> bytes:
    """Return the 144 bytes that stand before `stored`, whose plain digest was checked."""
    # What is stored as it is has one digest.
    stored_digest = plain_digest if codec == CODEC_RAW else blake3(stored).digest()
    header = _CHUNK.pack(
        _CHUNK_MAGIC, 1, codec, 0, 0, chunk, plain_bytes, len(stored), plain_digest, stored_digest
    )
    return _sealed(header)


def parse_chunk_header(data: bytes | memoryview) -> ChunkHeader:
    """Return what the first 144 bytes of `data` say of a chunk, else raise Damaged."""
    body = _unsealed(data, CHUNK_HEADER_BYTES)
    magic, version, codec, cipher, flags, chunk, plain_bytes, stored_bytes, plain, stored = (
        _CHUNK.unpack(body)
    )
    if magic != _CHUNK_MAGIC or version != 1:
        raise Damaged("not a chunk of version 1")
    if cipher or flags:
        raise Damaged(f"chunk {chunk} is encrypted, which this version cannot read")
    if not 0 < chunk <= MAX_CHUNK_ID:
        raise Damaged(f"no chunk has the id {chunk}")
    if not 0 < plain_bytes <= CHUNK_BYTES or plain_bytes % BLOCK_BYTES:
        raise Damaged(f"chunk {chunk} has {plain_bytes} plain bytes")
    if not 0 < stored_bytes <= STORED_MAX_BYTES:
        raise Damaged(f"chunk {chunk} has {stored_bytes} stored bytes")
    return ChunkHeader(chunk, codec, plain_bytes, stored_bytes, plain, stored)


def check_stored(data: bytes | memoryview) -> tuple[ChunkHeader, memoryview]:
    """Return header and stored bytes of the chunk at the start of `data`, else raise Damaged."""
    header = parse_chunk_header(data)
    stored = memoryview(data)[CHUNK_HEADER_BYTES : CHUNK_HEADER_BYTES + header.stored_bytes]
    if len(stored) != header.stored_bytes or blake3(stored).digest() != header.stored_digest:
        raise Damaged(f"chunk {header.id} does not match its stored digest")
    return header, stored


def path_of(folder: str, number: int) -> str:
    """Return the path of segment `number` below the segments' folder."""
    return os.path.join(folder, f"{number:08d}.sls")


def numbers_in(folder: str) -> list[int]:
    """Return the numbers of the segments in a folder, rising."""
    names = (name for name in os.listdir(folder) if name.endswith(".sls"))
    return sorted(int(name[:-4]) for name in names if name[:-4].isdigit())


class FoundChunk(NamedTuple):
    """A chunk in a segment; `is_sound` when its bytes are those of its stored digest.

    `in_sequence` when each chunk before it ends where the next begins. One that was found behind
    damage may lie inside another chunk: it may be what a user's file holds. Such a one is told only
    when it is sound, and its plain bytes are those of its plain digest.
    """

    offset: int
    header: ChunkHeader
    is_sound: bool
    in_sequence: bool

    @property
    def end(self) -> int:
        return self.offset + CHUNK_HEADER_BYTES + self.header.stored_bytes


SEARCH_BYTES = 1024 * 1024


def survey(path: str, start: int, *, to_the_end: bool) -> Iterator[FoundChunk]:
    """Yield the chunks from `start` on whose headers are sound.

    `to_the_end` passes over damage between them, else the first damage is the end. A chunk that the
    end of the file cuts off is none: its write was torn, and all that follows its header is its
    own. Where `start` is not the first chunk's place the one before it may have been found behind
    damage: there, too, sound is only what has its plain digest.
    """
    size_bytes = os.path.getsize(path)
    in_sequence = True
    with open(path, "rb", buffering=1024 * 1024) as file:
        offset = start
        while offset < size_bytes:
            with_plain = not in_sequence or start > SEGMENT_HEADER_BYTES
            found = _chunk_at(file, offset, in_sequence=in_sequence, with_plain=with_plain)
            if found is not None and in_sequence and found.end > size_bytes:
                return
            if found is not None and (in_sequence or found.is_sound):
                yield found
                offset = found.end
            else:
                # Not where such a header says that its chunk ends: it may lie inside another one.
                in_sequence = False
                offset = _next_magic(file, offset + 1)
            if not to_the_end and not (found is not None and found.is_sound):
                return


def _chunk_at(
    file: BinaryIO, offset: int, *, in_sequence: bool, with_plain: bool
) -> FoundChunk | None:
    """Return what has a chunk's header at this place, None when nothing does."""
    file.seek(offset)
    head = file.read(CHUNK_HEADER_BYTES)
    try:
        header = parse_chunk_header(head)
    except Damaged:
        return None
    is_sound = _is_sound(head, file.read(header.stored_bytes), with_plain=with_plain)
    return FoundChunk(offset, header, is_sound, in_sequence)


def _is_sound(head: bytes, stored: bytes, *, with_plain: bool) -> bool:
    try:
        header, data = check_stored(head + stored)
        if with_plain:
            check_chunk(
                header.plain_digest,
                header.plain_bytes,
                header.codec,
                data,
                stored_digest=header.stored_digest,
            )
    except (Damaged, BadChunk):
        return False
    return True


def _next_magic(file: BinaryIO, start: int) -> int:
    """Return where, from `start` on, a chunk's header may begin; else the end of the file."""
    file.seek(start)
    while data := file.read(SEARCH_BYTES):
        found = data.find(_CHUNK_MAGIC)
        if found >= 0:
            return start + found
        if len(data) < SEARCH_BYTES:
            return start + len(data)
        start += len(data) - len(_CHUNK_MAGIC) + 1
        file.seek(start)
    return start


class SegmentNumbers:
    """Gives each new segment of a replica its number, whoever writes it; any thread may ask."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._last = 0

    def take(self) -> int:
        """Return a number above all that were given and all that are in the folder."""
        with self._lock:
            self._last = max(self._last, *numbers_in(self._folder), 0) + 1
            return self._last


class SegmentWriter:
    """Appends chunks to segments of its own; used by one thread at a time.

    A replica has one for what it receives; whoever moves chunks has others.
    """

    def __init__(
        self,
        folder: str,
        source: str,
        limit_bytes: int = SEGMENT_LIMIT_BYTES,
        numbers: SegmentNumbers | None = None,
    ) -> None:
        self._folder = folder
        self._source = source
        self._limit_bytes = limit_bytes
        self._numbers = numbers or SegmentNumbers(folder)
        self.own: list[int] = []
        """The segments that this writer has appended to, rising."""
        self._fd = -1
        self._pending: list[bytes | memoryview] = []
        self.number = 0
        self.end_bytes = 0
        self._safe = (0, 0)
        self._owed: tuple[int, int] | None = None
        """A cut that the disk did not let through: nothing is appended before it is made."""

    def resume(self, number: int, end_bytes: int) -> None:
        """Go on after `end_bytes` of segment `number`; what lies behind is cut off."""
        self.close()
        self._fd = durable.open_for_append(path_of(self._folder, number))
        if os.lseek(self._fd, 0, os.SEEK_END) != end_bytes:
            durable.truncate(self._fd, end_bytes)
        self.number, self.end_bytes = number, end_bytes
        self._safe = (number, end_bytes)
        if number not in self.own:
            self.own.append(number)

    def append(self, header: bytes, stored: bytes | memoryview) -> tuple[int, int]:
        """Take a chunk for the next `flush`; return (segment, offset) where it will stand."""
        self._settle()
        if self._fd < 0 or self.end_bytes >= self._limit_bytes:
            self._begin()
        place = (self.number, self.end_bytes)
        self._pending.append(header)
        self._pending.append(stored)
        self.end_bytes += len(header) + len(stored)
        return place

    def _begin(self) -> None:
        """Close the segment, its bytes safe, and make the next one."""
        self.write()
        if self._fd >= 0:
            durable.sync(self._fd)
            os.close(self._fd)
            self._fd = -1
        number = self._numbers.take()
        self._fd = durable.create(path_of(self._folder, number))
        self.number = number
        self.own.append(number)
        self.end_bytes = durable.write_all(self._fd, [pack_segment_header(number, self._source)])
        durable.sync_folder(self._folder)

    @property
    def pending_bytes(self) -> int:
        """How many bytes wait in memory to be written."""
        return sum(map(len, self._pending))

    def write(self) -> None:
        """Write what was appended, without waiting for the disk. Raises OSError."""
        pending, self._pending = self._pending, []
        if pending:
            durable.write_all(self._fd, pending)

    def flush(self) -> None:
        """Bring all chunks that were appended to the disk. Raises OSError."""
        self._settle()
        self.write()
        if (self.number, self.end_bytes) != self._safe:
            durable.sync(self._fd)
            self._safe = (self.number, self.end_bytes)

    def undo(self) -> None:
        """Forget what was appended since the last `flush`, in the files too."""
        self._pending = []
        self.cut(*(self._owed or self._safe))

    def _settle(self) -> None:
        if self._owed is not None:
            self.cut(*self._owed)

    def cut(self, number: int, end_bytes: int) -> None:
        """Make `end_bytes` of segment `number` the end of this writer's segments (0: have none)."""
        self._owed = (number, end_bytes)
        self.close()
        for later in [own for own in self.own if own > number]:
            durable.remove(path_of(self._folder, later))
            self.own.remove(later)
        self.number = self.end_bytes = 0
        self._safe = (0, 0)
        if number:
            self.resume(number, end_bytes)
        self._owed = None

    def recover(self, number: int, end_bytes: int) -> None:
        """As `cut`, for all segments there are: nothing else writes yet."""
        self.own = numbers_in(self._folder)
        self.cut(number, end_bytes)
        self.own = [number] if number else []

    def leave(self) -> None:
        """Append nothing more to the segments so far; all must be flushed."""
        self.close()
        self.own = []
        self.number = self.end_bytes = 0
        self._safe = (0, 0)
        self._owed = None

    def close(self) -> None:
        self._pending = []
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
