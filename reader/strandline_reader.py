#!/usr/bin/env python3
"""Reads a Strandline replica folder with nothing of Strandline: lists, restores and checks it.

This one file is the user's way out. It was written from the page docs/formats/replica.md alone, and
needs Python 3.11 or newer, BLAKE3 (pip install blake3) and Zstandard (part of Python 3.14; before:
pip install backports.zstd). It only reads the replica folder, which may lie on a read-only medium,
or belong to a store that writes to it at this moment. index.db is never opened.

The file goes from bytes to files: MessagePack, manifests, segments, the replica, the state of a
recovery point, its chunks, restore, verify, the command line.
"""

import argparse
import base64
import contextlib
import difflib
import errno
import itertools
import json
import os
import resource
import signal
import sqlite3
import stat
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from blake3 import blake3

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

EXAMPLES = """\
examples:
  strandline_reader.py points  /mnt/replicas/0123456789abcdef
  strandline_reader.py list    /mnt/replicas/0123456789abcdef docs/2026 --point 17
  strandline_reader.py restore /mnt/replicas/0123456789abcdef --point 17 --to /srv/back
  strandline_reader.py restore /mnt/replicas/0123456789abcdef --to /srv/back docs/letter.odt
  strandline_reader.py verify  /mnt/replicas/0123456789abcdef

FOLDER is a replica: the folder that holds segments/ and manifests/. PATH goes from the root of the
protected tree. The recovery point is the newest, if --point does not name another.

A file that lost bytes is restored as NAME.damaged, with zeros in their place, and is listed.
Run as root to give files back to their owners.

exit codes: 0 done, 1 failed, 2 wrong use, 3 no such replica, recovery point or path,
4 done in part: what is damaged or was left out is listed, 130 interrupted.

The state of a recovery point is worked out in a temporary database below $SQLITE_TMPDIR (else
/var/tmp): some 120 MB and half a minute for a million files. Memory stays below 250 MiB.
"""

BLOCK = 4096
ROOT = 1  # the file id of the root folder
DATA, HOLE, ZERO = range(3)  # kinds of extent
HEAD, DELTA, TAIL = 1, 2, 3  # types of frame
NEVER = 2**62  # behind the last block of any file
MOST = 2**63 - 1  # that SQLite, ids and times in nanoseconds can be
MAX_PLAIN_CHUNK_BYTES, MAX_STORED_CHUNK_BYTES = 131072, 132096
MAX_FRAME_BYTES = 8 << 20
MAX_CACHED_CHUNKS = 256  # 32 MiB
MAX_DATABASE_CACHE_KIB = 128 << 10
MAX_DEPTH = 64  # of a MessagePack value
OPEN_ATTEMPTS = 10  # while the store replaces manifests under the reader

Json = dict[str, Any]


class Damage(Exception):
    """Bytes that do not match their digest or their format; the text says which and why."""


class Refusal(Exception):
    """What was asked for cannot be done: exit code, stable code, message, hint, nearest names."""

    def __init__(
        self, status: int, code: str, message: str, hint: str = "", nearest: Iterable[str] = ()
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.hint = status, code, message, hint
        self.nearest = list(nearest)


# --- MessagePack -------------------------------------------------------------------------------

NUMBERS = {
    code: struct.Struct(">" + kind)
    for code, kind in zip(range(0xCA, 0xD4), "fdBHIQbhiq", strict=True)
}
CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
SIZED = {  # what follows, and how many bytes its length has
    0xC4: (bytes, 1), 0xC5: (bytes, 2), 0xC6: (bytes, 4),
    0xD9: (str, 1), 0xDA: (str, 2), 0xDB: (str, 4),
    0xDC: (list, 2), 0xDD: (list, 4),
    0xDE: (dict, 2), 0xDF: (dict, 4),
}  # fmt: skip


def unpack(data: bytes) -> Any:
    """The one MessagePack value that `data` is; anything else, extension types too, is Damage."""
    try:
        value, end = value_at(data, 0, MAX_DEPTH)
    except (IndexError, struct.error) as error:
        raise Damage("the MessagePack value is cut short") from error
    except UnicodeDecodeError as error:
        raise Damage("a MessagePack text is not UTF-8") from error
    if end != len(data):
        raise Damage("bytes follow the MessagePack value")
    return value


def value_at(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    """The value that begins at `at`, and where it ends."""
    code = data[at]
    at += 1
    if code < 0x80:
        return code, at
    if code >= 0xE0:
        return code - 256, at
    if number := NUMBERS.get(code):
        return number.unpack_from(data, at)[0], at + number.size
    if code in CONSTANTS:
        return CONSTANTS[code], at
    if code in SIZED:
        kind, width = SIZED[code]
        count = int.from_bytes(data[at : at + width], "big")
        at += width
    elif code < 0xC0:
        kind, count = (dict, code & 15) if code < 0x90 else (list, code & 15)
        if code >= 0xA0:
            kind, count = str, code & 31
    else:
        raise Damage(f"MessagePack code {code:#x} is not used in replicas")
    if at + count > len(data):  # a container has at least a byte for each element
        raise IndexError(at)
    if kind is bytes:
        return data[at : at + count], at + count
    if kind is str:
        return data[at : at + count].decode(), at + count
    if not depth:
        raise Damage("the MessagePack value is nested too deep")
    values = []
    for _ in range(count if kind is list else 2 * count):
        value, at = value_at(data, at, depth - 1)
        values.append(value)
    return (values if kind is list else map_of(values[::2], values[1::2])), at


def map_of(keys: list[Any], values: list[Any]) -> dict[Any, Any]:
    if not all(isinstance(key, str | bytes | int) for key in keys) or len({*keys}) < len(keys):
        raise Damage("a MessagePack map has a key that is doubled or of no simple type")
    return dict(zip(keys, values, strict=True))


# --- Manifests ---------------------------------------------------------------------------------

FRAME = struct.Struct("<4s3BxII16s12s4x16s")


def read_at(file: int, at: int, count: int) -> bytes:
    """`count` bytes of an open file, fewer at its end; a disk that cannot read them is Damage."""
    data = b""
    try:
        while len(data) < count and (more := os.pread(file, count - len(data), at + len(data))):
            data += more
    except OSError as error:
        raise Damage(f"cannot be read at byte {at}: {error.strerror}") from error
    return data


def plain_bytes(stored: bytes, codec: int, cipher: int, size: int) -> bytes:
    """Undo cipher and codec; the result has exactly `size` bytes."""
    if cipher or codec > 1:
        raise Damage(f"cipher {cipher}, codec {codec}: this reader knows cipher 0, codecs 0 and 1")
    plain = stored
    if codec == 1:
        decompressor = zstd.ZstdDecompressor()
        try:
            plain = decompressor.decompress(stored, max_length=size + 1)
        except zstd.ZstdError as error:
            raise Damage(f"does not decompress: {error}") from error
        if not decompressor.eof or decompressor.unused_data:
            raise Damage("is not exactly one Zstandard frame")
    if len(plain) != size:
        raise Damage("has another length than its header says")
    return plain


class Frame(NamedTuple):
    """One frame of a manifest, checked against its digest."""

    type: int
    raw: bytes
    codec: int
    cipher: int
    size: int

    def value(self) -> Any:
        return unpack(plain_bytes(self.raw[FRAME.size :], self.codec, self.cipher, self.size))


def frames(file: int) -> Iterator[Frame]:
    """The frames of a manifest to its end; Damage where one is not whole."""
    at = 0
    while header := read_at(file, at, FRAME.size):
        if len(header) < FRAME.size or header[:4] != b"SLFR":
            raise Damage(f"no frame at byte {at}")
        _, kind, codec, cipher, plain, stored, _, _, digest = FRAME.unpack(header)
        if plain > MAX_FRAME_BYTES or stored > 2 * MAX_FRAME_BYTES:
            raise Damage(f"a frame of impossible size at byte {at}")
        raw = header + read_at(file, at + FRAME.size, stored)
        if blake3(header[:48] + raw[FRAME.size :]).digest()[:16] != digest:
            raise Damage(f"the frame at byte {at} does not match its digest")
        yield Frame(kind, raw, codec, cipher, plain)
        at += len(raw)


class OpenFile:
    """A file of the replica, held open: what a store unlinks or replaces stays readable."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = os.path.join(*path.split(os.sep)[-2:])  # manifests/00000001.slm
        self.number = int(os.path.splitext(os.path.basename(path))[0])
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)

    def replaced(self) -> bool:
        """Whether another file, or none, lies under this name by now."""
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self.fd))
        except FileNotFoundError:
            return True


class Manifest(OpenFile):
    """The manifest of one recovery point.

    `damage` says why that cannot be restored: it is in this file, or in one that this one needs.
    """

    def check(self) -> None:
        """Read the whole file once; note what head and tail say, the digest, and any damage."""
        self.head: dict[str, Any] = {}
        self.tail: dict[str, Any] = {}
        self.parent, self.digest, self.damage = 0, b"", ""
        try:
            self.check_frames()
            self.check_head()
        except Damage as error:
            self.damage = f"{self.name}: {error}"
        except (KeyError, TypeError, ValueError) as error:
            self.damage = f"{self.name}: head or tail is not as the format says: {error!r}"

    def check_frames(self) -> None:
        before = whole = blake3()
        types = []
        for frame in frames(self.fd):
            before = whole.copy()
            whole.update(frame.raw)
            types.append(frame.type)
            if frame.type == HEAD:
                self.head = frame.value()
            elif frame.type == TAIL:
                self.tail = frame.value()
        deltas = len(types) - 2
        if types != [HEAD, *[DELTA] * deltas, TAIL]:
            raise Damage("has not one head, then deltas, then one tail: cut short or mixed up")
        if self.tail["digest"] != before.digest() or self.tail["frames"] != deltas:
            raise Damage("does not match the digest in its tail")
        self.digest = whole.digest()

    def check_head(self) -> None:
        """A manifest that was rewritten names in `replaces` the digest of its recovery point."""
        if self.head["format"] != 1:
            raise Damage(f"is of format {self.head['format']}; this reader knows format 1")
        parent = int(self.head["parent"])
        if self.head["number"] != self.number or not 0 <= parent < self.number:
            raise Damage("is not the manifest that its name says")
        self.parent = parent
        for number, digest, *_ in self.head["replaces"]:
            if number == self.number:
                self.digest = digest

    def deltas(self) -> Iterator[list[Any]]:
        return (frame.value() for frame in frames(self.fd) if frame.type == DELTA)


def kept_points(manifests: dict[int, Manifest]) -> list[Manifest]:
    """The recovery points that are kept, oldest first; what breaks a chain is noted in `damage`.

    A manifest between a whole one and its parent was dropped and not yet unlinked. Where one is
    damaged its parent is unknown, and all that lie below count as kept.
    """
    kept: list[Manifest] = []
    below = max(manifests, default=0) + 1
    for number in sorted(manifests, reverse=True):
        if number < below:
            kept.append(manifests[number])
            below = number if manifests[number].damage else manifests[number].parent + 1
    kept.reverse()
    for point in kept:
        if not point.damage:
            point.damage = broken_link(point, manifests.get(point.parent))
    return kept


def broken_link(point: Manifest, parent: Manifest | None) -> str:
    """Why this whole manifest does not continue its parent's chain; empty when it does."""
    if point.parent and parent is None:
        return f"it needs recovery point {point.parent}, whose manifest is missing"
    if parent and parent.damage:
        return f"it needs recovery point {point.parent}, which cannot be restored"
    if point.head["parent_digest"] != (parent.digest if parent else b""):
        return f"it was made against another recovery point {point.parent} than lies here"
    if parent and point.head["source"] != parent.head["source"]:
        return f"recovery point {point.parent} is of another data source"
    return ""


# --- Segments ----------------------------------------------------------------------------------

SEGMENT = struct.Struct("<8sQ16s24x8s")
CHUNK = struct.Struct("<4s4BQII16s12s12x32s32s8x8s")


class ChunkHeader(NamedTuple):
    codec: int
    cipher: int
    chunk: int
    plain: int
    stored: int
    plain_digest: bytes
    stored_digest: bytes


def chunk_header(data: bytes) -> ChunkHeader | None:
    """The header that `data` begins with, if it is one and matches its digest."""
    if len(data) < CHUNK.size or data[:4] != b"SLCK":
        return None
    _, version, codec, cipher, _, chunk, plain, stored, _, _, of_plain, of_stored, check = (
        CHUNK.unpack_from(data)
    )
    fits = plain <= MAX_PLAIN_CHUNK_BYTES and stored <= MAX_STORED_CHUNK_BYTES and chunk <= MOST
    if version != 1 or not fits or blake3(data[:136]).digest()[:8] != check:
        return None
    return ChunkHeader(codec, cipher, chunk, plain, stored, of_plain, of_stored)


def chunk_plain(data: bytes) -> bytes:
    """The plain bytes of a chunk (header and stored bytes), checked against both its digests."""
    header = chunk_header(data)
    if header is None:
        raise Damage("the chunk's header does not match its digest")
    stored = data[CHUNK.size :]
    if blake3(stored).digest() != header.stored_digest:
        raise Damage("the stored bytes do not match their digest")
    plain = plain_bytes(stored, header.codec, header.cipher, header.plain)
    if blake3(plain).digest() != header.plain_digest:
        raise Damage("the plain bytes do not match their digest")
    return plain


class Segment(OpenFile):
    """One file of chunks. What a store appends after it was opened is not needed."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.size = os.fstat(self.fd).st_size

    def check_header(self, source: str) -> None:
        header = read_at(self.fd, 0, SEGMENT.size)
        if len(header) < SEGMENT.size or blake3(header[:56]).digest()[:8] != header[56:]:
            raise Damage("the segment's header does not match its digest")
        if SEGMENT.unpack(header)[:3] != (b"SLSEG\0\0\1", self.number, source.encode()):
            raise Damage("the segment is of another version, number or data source")

    def chunks(self) -> Iterator[tuple[int, ChunkHeader | None, int]]:
        """(at, header, end) of each chunk in order; no header: bytes in which no chunk begins.

        Behind such bytes only whole chunks count, to the segment's end: what looks like a header
        may be part of a file that is a segment, and the end that it names lie in the next chunk.
        """
        at, in_sequence = SEGMENT.size, True
        while at < self.size:
            header = self.header_at(at) if in_sequence or self.whole_at(at) else None
            in_sequence = in_sequence and header is not None
            end = at + CHUNK.size + header.stored if header else self.next_whole_chunk(at + 1)
            yield at, header, end
            at = end

    def header_at(self, at: int) -> ChunkHeader | None:
        """The header at this place, if it is readable and its stored bytes lie in the segment."""
        with contextlib.suppress(Damage):
            header = chunk_header(read_at(self.fd, at, CHUNK.size))
            if header and at + CHUNK.size + header.stored <= self.size:
                return header
        return None

    def next_whole_chunk(self, at: int) -> int:
        """Where, behind a damaged header, the next whole chunk begins; else the segment's end."""
        while at < self.size:
            try:
                data = read_at(self.fd, at, 1 << 20)
            except Damage:
                at += BLOCK
                continue
            found = data.find(b"SLCK")
            while found >= 0:
                if self.whole_at(at + found):
                    return at + found
                found = data.find(b"SLCK", found + 1)
            at += max(len(data) - 3, 1)
        return self.size

    def whole_at(self, at: int) -> bool:
        """Whether a chunk begins here that matches both its digests."""
        header = self.header_at(at)
        if header is None:
            return False
        with contextlib.suppress(Damage):
            chunk_plain(read_at(self.fd, at, CHUNK.size + header.stored))
            return True
        return False


# --- The replica folder ------------------------------------------------------------------------


class Replica:
    """A replica folder as it was at one moment; its files are held open."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.findings: list[Json] = []  # damage that stops nobody
        if not os.path.isdir(os.path.join(folder, "manifests")):
            inside = os.path.join(folder, "replicas")
            nearest = sorted(os.listdir(inside)) if os.path.isdir(inside) else []
            hint = "name the folder that holds segments/ and manifests/"
            raise Refusal(3, "reader.no_replica", f"{folder} is no replica folder", hint, nearest)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self.open()
        for manifest in self.manifests.values():
            manifest.check()
        self.points = kept_points(self.manifests)
        self.about = self.document("replica.json")
        self.deleted = self.document("deleted.json", checked=True).get("points", {})
        heads = [point.head["source"] for point in self.points if not point.damage]
        self.source = str(heads[-1] if heads else self.about.get("source", ""))

    def open(self) -> None:
        """Open all manifests, then all segments, until no manifest was replaced meanwhile.

        A store unlinks a segment only after every manifest that named it was replaced: so these
        segments hold all that these manifests name. Manifests that the store found damaged and put
        aside stand for themselves where it did not write them anew.
        """
        for _ in range(OPEN_ATTEMPTS):
            with contextlib.suppress(FileNotFoundError):
                paths = self.files("damaged", ".slm") + self.files("manifests", ".slm")
                manifests = {file.number: file for file in map(Manifest, paths)}
                segments = [Segment(path) for path in self.files("segments", ".sls")]
                if not any(manifest.replaced() for manifest in manifests.values()):
                    self.manifests = manifests
                    self.segments = {segment.number: segment for segment in segments}
                    return
        raise Refusal(1, "reader.busy", "the store rewrites this replica all the time", "try again")

    def files(self, folder: str, suffix: str) -> list[str]:
        inside = os.path.join(self.folder, folder)
        names = os.listdir(inside) if os.path.isdir(inside) else []
        return [
            os.path.join(inside, name)
            for name in sorted(names)
            if name.endswith(suffix) and name.removesuffix(suffix).isdecimal()
        ]

    def document(self, name: str, *, checked: bool = False) -> Json:
        """A JSON object of the folder; empty when it is missing, a finding when it is damaged.

        One that is `checked` ends with the digest of what stands before that.
        """
        try:
            with open(os.path.join(self.folder, name), "rb") as file:
                data = file.read()
            value = json.loads(data)
            if not isinstance(value, dict) or value.get("format") != 1:
                raise ValueError("not an object of format 1")
            before = blake3(data.rpartition(b'"check"')[0])
            if checked and value.get("check") != before.hexdigest(length=16):
                raise ValueError("does not match its digest")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self.find_damage(name, str(error))
            return {}
        return value

    def find_damage(self, what: str, why: str) -> None:
        self.findings.append({"what": what, "why": why, "harms": []})

    def point(self, number: int | None) -> Manifest:
        """This recovery point, or the newest; one that cannot be restored is refused."""
        by_number = {point.number: point for point in self.points}
        if not by_number:
            raise Refusal(3, "reader.no_point", "this replica holds no recovery point")
        number = max(by_number) if number is None else number
        if number not in by_number:
            nearest = sorted(by_number, key=lambda other: abs(other - number))[:3]
            message = f"there is no recovery point {number}"
            raise Refusal(3, "reader.no_point", message, "see: points", map(str, nearest))
        if damage := by_number[number].damage:
            whole = [str(point.number) for point in reversed(self.points) if not point.damage]
            message = f"recovery point {number} cannot be restored: {damage}"
            hint = "name another with --point" if whole else ""
            raise Refusal(1, "reader.damaged_point", message, hint, whole[:3])
        return by_number[number]

    def chain(self, point: Manifest) -> list[Manifest]:
        """The manifests that make up this recovery point, in the order in which they apply."""
        chain = [point]
        while chain[-1].parent:
            chain.append(self.manifests[chain[-1].parent])
        return chain[::-1]


# --- The state of a recovery point -------------------------------------------------------------

SCHEMA = f"""
PRAGMA journal_mode = OFF;
PRAGMA cache_size = -{MAX_DATABASE_CACHE_KIB};
CREATE TABLE inode (file INTEGER PRIMARY KEY, type, mode, uid, gid, size, mtime_ns, atime_ns, rdev,
                    target, changing);
CREATE TABLE xattr (file, name, value, PRIMARY KEY (file, name)) WITHOUT ROWID;
CREATE TABLE name (parent, name, file, PRIMARY KEY (parent, name)) WITHOUT ROWID;
CREATE INDEX name_of ON name (file);
CREATE TABLE extent (file, start, blocks, kind, chunk, chunk_block, PRIMARY KEY (file, start))
                    WITHOUT ROWID;
CREATE TABLE chunk (id INTEGER PRIMARY KEY, digest);
CREATE TABLE copy (chunk, segment, at, end, digest, PRIMARY KEY (chunk, segment, at)) WITHOUT ROWID;
"""
OVERLAPPING = """
SELECT start, blocks, kind, chunk, chunk_block FROM extent WHERE file = :file AND start < :end
AND start >= ifnull((SELECT max(start) FROM extent WHERE file = :file AND start <= :start), :start)
AND start + blocks > :start
"""


ODD = (ValueError, OverflowError)  # a value that Python, SQLite or the system cannot take


def nearest(number: int) -> int:
    """The number, or the nearest that can be kept: an impossible one harms nothing but itself."""
    return max(-MOST, min(number, MOST))


class Inode(NamedTuple):
    file: int
    type: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    atime_ns: int
    rdev: int
    target: bytes
    changing: int


class State:
    """Names, inodes and extents of one recovery point, in a temporary database of its own."""

    def __init__(self) -> None:
        self.number = 0
        self.issues: list[tuple[bytes, str, str]] = []  # of this recovery point
        self.db = sqlite3.connect("", isolation_level=None)  # "": a file that nobody else sees
        self.db.executescript(SCHEMA)

    def reach(self, chain: list[Manifest]) -> None:
        """Become the recovery point at the end of this chain; goes on from where it stands."""
        numbers = [manifest.number for manifest in chain]
        if self.number in numbers:
            chain = chain[numbers.index(self.number) + 1 :]
        else:
            for table in ("inode", "xattr", "name", "extent"):
                self.db.execute(f"DELETE FROM {table}")
        for manifest in chain:
            self.apply(manifest)

    def apply(self, manifest: Manifest) -> None:
        """Raises Damage: the disk no longer reads what was whole, or it is not as the page says."""
        self.issues = []
        self.db.execute("BEGIN")
        try:
            for delta in manifest.deltas():
                self.apply_delta(delta)
        except (*ODD, TypeError, sqlite3.IntegrityError, sqlite3.InterfaceError) as error:
            raise Damage(f"{manifest.name} is not as the format says: {error}") from error
        self.db.execute("COMMIT")
        self.number = manifest.number

    def apply_delta(self, delta: list[Any]) -> None:
        chunks, extents, inodes, names, gone_inodes, gone_names, issues, *_ = delta
        run = self.db.executemany
        run("INSERT OR REPLACE INTO chunk VALUES (?, ?)", (chunk[:2] for chunk in chunks))
        run("DELETE FROM name WHERE parent = ? AND name = ?", (gone[:2] for gone in gone_names))
        gone = [(file,) for file in gone_inodes]
        for table in ("inode", "xattr", "extent"):
            run(f"DELETE FROM {table} WHERE file = ?", gone)
        run("DELETE FROM name WHERE parent = ?", gone)
        for inode in inodes:
            self.put_inode(*inode[:16])
        run("INSERT OR REPLACE INTO name VALUES (?, ?, ?)", (name[:3] for name in names))
        for extent in extents:
            self.put_extent(*extent[:6])
        self.issues += [(path, code, text) for path, code, text, *_ in issues]

    def put_inode(
        self, file: int, kind: str, mode: int, uid: int, gid: int, size: int, mtime_ns: int,
        _ctime_ns: int, atime_ns: int, _birth_ns: int, _fs: int, _ino: int, rdev: int,
        target: bytes, xattrs: Iterable[Any], changing: bool,
    ) -> None:  # fmt: skip
        """Replace the record of this file; its size ends the extents behind it."""
        numbers = map(nearest, (mode & 0o7777, uid, gid, size, mtime_ns, atime_ns, rdev))
        row = (file, kind, *numbers, target, changing)
        self.db.execute("INSERT OR REPLACE INTO inode VALUES (?,?,?,?,?,?,?,?,?,?,?)", row)
        self.db.execute("DELETE FROM xattr WHERE file = ?", (file,))
        rows = ((file, name, value) for name, value, *_ in xattrs)
        self.db.executemany("INSERT OR REPLACE INTO xattr VALUES (?, ?, ?)", rows)
        self.cut(file, -(-nearest(size) // BLOCK), NEVER)

    def put_extent(
        self, file: int, start: int, blocks: int, kind: int, chunk: int, chunk_block: int
    ) -> None:
        self.cut(file, start, start + blocks)
        if kind != HOLE:
            row = (file, start, blocks, kind, chunk, chunk_block)
            self.db.execute("INSERT INTO extent VALUES (?, ?, ?, ?, ?, ?)", row)

    def cut(self, file: int, start: int, end: int) -> None:
        """End what blocks `start` to `end - 1` held; what sticks out on either side stays."""
        where = {"file": file, "start": start, "end": end}
        for old, blocks, kind, chunk, chunk_block in self.db.execute(OVERLAPPING, where).fetchall():
            self.db.execute("DELETE FROM extent WHERE file = ? AND start = ?", (file, old))
            for begin, stop in ((old, min(start, old + blocks)), (max(end, old), old + blocks)):
                if begin < stop:
                    row = (file, begin, stop - begin, kind, chunk, chunk_block + begin - old)
                    self.db.execute("INSERT INTO extent VALUES (?, ?, ?, ?, ?, ?)", row)

    def inode(self, file: int) -> Inode:
        row = self.db.execute("SELECT * FROM inode WHERE file = ?", (file,)).fetchone()
        if row is None:
            raise Damage(f"no manifest says what file {file} is")
        return Inode(*row)

    def xattrs(self, file: int) -> list[tuple[bytes, bytes]]:
        return self.db.execute("SELECT name, value FROM xattr WHERE file = ?", (file,)).fetchall()

    def entries(self, folder: int) -> Iterator[tuple[bytes, int]]:
        return self.db.execute("SELECT name, file FROM name WHERE parent = ?", (folder,))

    def entry(self, folder: int, name: bytes) -> int | None:
        where = "SELECT file FROM name WHERE parent = ? AND name = ?"
        row = self.db.execute(where, (folder, name)).fetchone()
        return row[0] if row else None

    def extents(self, file: int) -> Iterator[tuple[int, int, int, int, int]]:
        columns = "start, blocks, kind, chunk, chunk_block"
        where = "WHERE file = ? ORDER BY start"
        return self.db.execute(f"SELECT {columns} FROM extent {where}", (file,))

    def names(self, file: int) -> list[tuple[int, bytes]]:
        """(parent, name) of each name that leads to this file."""
        return self.db.execute("SELECT parent, name FROM name WHERE file = ?", (file,)).fetchall()

    def paths(self, file: int) -> list[bytes]:
        """All paths that lead to this file."""
        paths = []
        for parent, name in self.names(file):
            path, seen = [name], {file}
            while parent != ROOT and parent not in seen and (above := self.names(parent)):
                seen.add(parent)
                parent, name = above[0]  # noqa: PLW2901
                path.append(name)
            paths.append(b"/".join(reversed(path)))
        return paths

    def find(self, path: bytes) -> tuple[list[bytes], int]:
        """The names that a PATH consists of, and the file that it leads to."""
        names = [name for name in path.split(b"/") if name not in (b"", b".")]
        file = ROOT
        for depth, name in enumerate(names):
            inside = self.entry(file, name)
            if inside is None:
                there = [printable(other) for other, _ in self.entries(file)]
                close = difflib.get_close_matches(printable(name), there, cutoff=0.5)
                missing = printable(b"/".join(names[: depth + 1]))
                message = f"there is no {missing} in recovery point {self.number}"
                raise Refusal(3, "reader.no_path", message, "see: list", close)
            file = inside
        return names, file


class Chunks:
    """Plain bytes of chunks, each checked against the digest that the manifests name."""

    def __init__(self, state: State, segments: dict[int, Segment]) -> None:
        """Reads the headers of all chunks in all segments."""
        self.db, self.segments = state.db, segments
        self.cache: OrderedDict[int, bytes | Damage] = OrderedDict()
        insert = "INSERT INTO copy SELECT ?1, ?2, ?3, ?4, NULL FROM chunk WHERE id = ?1"
        self.db.execute("BEGIN")
        for number, segment in segments.items():
            found = ((head.chunk, number, at, end) for at, head, end in segment.chunks() if head)
            self.db.executemany(insert, found)
        self.db.execute("COMMIT")

    def plain(self, chunk: int) -> bytes:
        """Raises Damage: no copy of this chunk matches its digest."""
        found = self.cache.pop(chunk, None)
        if found is None:
            try:
                found = self.fetch(chunk)
            except Damage as error:
                found = error
        self.cache[chunk] = found
        if len(self.cache) > MAX_CACHED_CHUNKS:
            self.cache.popitem(last=False)
        if isinstance(found, Damage):
            raise found
        return found

    def fetch(self, chunk: int) -> bytes:
        """The latest copy that is whole."""
        named = self.db.execute("SELECT digest FROM chunk WHERE id = ?", (chunk,)).fetchone()
        if named is None:
            raise Damage(f"chunk {chunk}: no manifest gives its digest")
        why = "lies in no segment"
        copies = "SELECT segment, at, end FROM copy WHERE chunk = ? ORDER BY segment DESC, at DESC"
        for number, at, end in self.db.execute(copies, (chunk,)).fetchall():
            segment = self.segments[number]
            try:
                plain = chunk_plain(read_at(segment.fd, at, end - at))
            except Damage as error:
                why = f"{segment.name} at byte {at}: {error}"
                continue
            if blake3(plain).digest() == named[0]:
                return plain
            why = f"{segment.name} at byte {at}: not the bytes that the manifest names"
        raise Damage(f"chunk {chunk}: {why}")


# --- Restore -----------------------------------------------------------------------------------

Path = tuple[bytes, ...]
Wanted = dict[bytes, Any] | None  # names to restore and what is wanted in them; None: everything
TYPE_BITS = {
    "f": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK, "p": stat.S_IFIFO,
    "s": stat.S_IFSOCK, "b": stat.S_IFBLK, "c": stat.S_IFCHR,
}  # fmt: skip
ACLS = {"system.posix_acl_access", "system.posix_acl_default"}
HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # no other file will do better


def open_below(root: int, path: Path) -> int:
    """Open a folder below `root` name by name, through no symlink; the caller closes it."""
    folder = os.dup(root)
    for name in path:
        try:
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
        finally:
            os.close(folder)
        folder = inner
    return folder


def reason(error: Exception) -> str:
    """Why a file, or something of it, cannot be made; raises what no other file escapes."""
    if getattr(error, "errno", None) in HOPELESS:
        raise error
    return getattr(error, "strerror", None) or str(error)


class Restore:
    """Writes files of a state below the folder `root` and nowhere else."""

    def __init__(self, state: State, chunks: Chunks, root: int, *, devices: bool) -> None:
        self.state, self.chunks, self.root, self.devices = state, chunks, root, devices
        self.files = self.bytes = 0
        self.harmed: list[Json] = []  # content that is lost
        self.left_out: list[Json] = []  # what could not be made or set
        self.foreign = 0  # files of other owners, when not root
        self.made: dict[int, Path] = {}  # folders, and files with several names
        self.lost: set[int] = set()  # files that lost bytes
        self.marked: set[tuple[int, bytes]] = set()  # (folder, name) given to such files

    def run(self, wanted: Wanted) -> None:
        """Make everything, folder by folder; give folders their own attributes at the end."""
        folders: list[tuple[Path, int, Wanted]] = [((), ROOT, wanted)]
        self.made[ROOT] = ()
        for path, folder, inside in folders:
            here = open_below(self.root, path)
            for name, file in self.state.entries(folder):
                if inside is None or name in inside:
                    inner = (*path, name)
                    if self.entry(here, folder, inner, file) == "d":
                        folders.append((inner, file, inside[name] if inside else None))
            os.close(here)
        for path, folder, _ in reversed(folders):
            if path or wanted is None:
                here = open_below(self.root, path[:-1])
                self.attributes(here, path or (b".",), self.state.inode(folder))
                os.close(here)
        if self.foreign:
            why = f"{self.foreign} files keep your owner: only root can give files away"
            self.left_out.append({"path": name_document(b""), "why": [why]})
        os.sync()

    def entry(self, here: int, folder: int, path: Path, file: int) -> str:
        """Make one name in the folder `here`; the type of what was made, "" when nothing was."""
        try:
            if path[-1] in (b"", b".", b"..") or b"/" in path[-1] or b"\0" in path[-1]:
                raise Damage("a name that no file can have")
            inode = self.state.inode(file)
            if inode.type in "bc" and not self.devices:
                self.leave_out(path, "a device; --devices makes them")
                return ""
            if file in self.made:
                self.link(here, folder, path, inode)
            else:
                path = self.make(here, folder, path, inode)
                if inode.type == "d" or len(self.state.names(file)) > 1:
                    self.made[file] = path
        except Damage as error:
            self.harm(path, str(error))
            return ""
        except (OSError, *ODD) as error:
            self.leave_out(path, reason(error))
            return ""
        self.files += 1
        return inode.type

    def make(self, here: int, folder: int, path: Path, inode: Inode) -> Path:
        """Make a file of any type; the path under which it now lies."""
        name = path[-1]
        if inode.type == "d":
            os.mkdir(name, 0o700, dir_fd=here)
            return path  # its attributes come when it is full
        if inode.type == "f":
            path = self.regular_file(here, folder, path, inode)
        elif inode.type == "l":
            os.symlink(inode.target, name, dir_fd=here)
        elif inode.type in TYPE_BITS:
            os.mknod(name, 0o600 | TYPE_BITS[inode.type], inode.rdev, dir_fd=here)
        else:
            raise Damage(f"a file of unknown type {inode.type!r}")
        self.attributes(here, path, inode)
        return path

    def regular_file(self, here: int, folder: int, path: Path, inode: Inode) -> Path:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        fd = os.open(path[-1], flags, 0o600, dir_fd=here)
        try:
            os.truncate(fd, inode.size)
            lost = self.content(fd, inode)
        finally:
            os.close(fd)
        if lost:
            self.lost.add(inode.file)
            name = path[-1]
            path = (*path[:-1], self.damaged_name(folder, name))
            os.rename(name, path[-1], src_dir_fd=here, dst_dir_fd=here)
            self.harm(path, *lost)
        return path

    def content(self, fd: int, inode: Inode) -> list[str]:
        """Write a file's data; holes stay holes. What was lost and why, if anything was."""
        lost = []
        for start, blocks, kind, chunk, chunk_block in self.state.extents(inode.file):
            at = start * BLOCK
            count = min(blocks * BLOCK, inode.size - at)
            if count <= 0:  # an extent behind the end of the file is none of it
                continue
            if kind == ZERO:
                os.posix_fallocate(fd, at, count)
                continue
            try:
                plain = memoryview(self.chunks.plain(chunk))[chunk_block * BLOCK :][:count]
                if len(plain) < count:
                    raise Damage(f"chunk {chunk} is shorter than what an extent names of it")
            except Damage as error:
                lost.append(f"bytes {at} to {at + count - 1}: {error}")
                continue
            self.bytes += count
            while plain:
                written = os.pwrite(fd, plain, at)
                plain, at = plain[written:], at + written
        return lost

    def damaged_name(self, folder: int, name: bytes) -> bytes:
        """A name like `name` that is not another file's in this folder, restored or damaged."""
        for number in itertools.count():
            other = name[:240] + b".damaged" + (b".%d" % number if number else b"")
            if (folder, other) not in self.marked and self.state.entry(folder, other) is None:
                break
        self.marked.add((folder, other))
        return other

    def link(self, here: int, folder: int, path: Path, inode: Inode) -> None:
        """Another name of a file that was made already; a damaged one stays marked as such."""
        first, name = self.made[inode.file], path[-1]
        if inode.type == "d":
            raise Damage("a second name of a folder")
        if inode.file in self.lost:
            name = self.damaged_name(folder, name)
            self.harm((*path[:-1], name), f"the same file as {printable(b'/'.join(first))}")
        there = open_below(self.root, first[:-1])
        try:
            os.link(first[-1], name, src_dir_fd=there, dst_dir_fd=here, follow_symlinks=False)
        finally:
            os.close(there)

    def attributes(self, here: int, path: Path, inode: Inode) -> None:
        """Owner, xattrs, mode, times: in the order in which none undoes another."""
        fd = os.open(path[-1], os.O_PATH | os.O_NOFOLLOW, dir_fd=here)
        itself = f"/proc/self/fd/{fd}"  # leads to this very file, even when that is a symlink
        mode = inode.mode
        if not self.attempt(path, "owner", os.chown, itself, inode.uid, inode.gid):
            mode &= 0o1777  # setuid and setgid were meant for the true owner
        there = os.listxattr(itself) if inode.type != "l" else []
        for inherited in ACLS & {*there}:
            self.attempt(path, inherited, os.removexattr, itself, inherited)
        for name, value in sorted(self.state.xattrs(inode.file)):
            self.attempt(path, f"xattr {printable(name)}", os.setxattr, itself, name, value)
        if inode.type != "l":
            self.attempt(path, "mode", os.chmod, itself, mode)
        times = (inode.atime_ns, inode.mtime_ns)
        self.attempt(path, "times", lambda: os.utime(itself, ns=times))
        os.close(fd)

    def attempt(self, path: Path, what: str, action: Callable[..., None], *arguments: Any) -> bool:
        try:
            action(*arguments)
        except (OSError, *ODD) as error:
            why = reason(error)
            if what == "owner" and os.geteuid() != 0:
                self.foreign += 1
            else:
                self.leave_out(path, f"{what}: {why}")
            return False
        return True

    def harm(self, path: Path, *why: str) -> None:
        self.harmed.append({"path": name_document(b"/".join(path)), "why": list(why)})

    def leave_out(self, path: Path, why: str) -> None:
        self.left_out.append({"path": name_document(b"/".join(path)), "why": [why]})


# --- Verify ------------------------------------------------------------------------------------

MARK_LOST = """
CREATE TEMP TABLE lost AS SELECT id FROM chunk WHERE NOT EXISTS
(SELECT 1 FROM copy WHERE copy.chunk = id AND copy.digest = chunk.digest)
"""


class Verify:
    """Reads everything; `findings` harm something that is kept, `notes` do not."""

    def __init__(self, replica: Replica) -> None:
        self.replica, self.state = replica, State()
        self.findings, self.notes = replica.findings, []  # type: list[Json], list[Json]
        self.chunks = self.bytes = 0

    def run(self) -> None:
        for point in self.replica.points:
            if point.damage:
                self.replica.find_damage(f"recovery point {point.number}", point.damage)
        self.state.db.execute("BEGIN")
        for segment in self.replica.segments.values():
            self.segment(segment)
        self.state.db.execute("COMMIT")
        whole = [point for point in self.replica.points if not point.damage]
        for point in whole:
            self.state.reach(self.replica.chain(point))
        self.state.db.execute(MARK_LOST)
        harmed: dict[int, dict[bytes, list[int]]] = {
            chunk: {} for (chunk,) in self.state.db.execute("SELECT id FROM lost ORDER BY id")
        }
        for point in whole if harmed else []:
            self.point(point, harmed)
        for chunk, paths in harmed.items():
            harms = [{"path": name_document(path), "points": at} for path, at in paths.items()]
            why = "no copy in the segments matches the digest that the manifests name"
            if harms:
                self.findings.append({"what": f"chunk {chunk}", "why": why, "harms": harms})
            else:
                self.note(f"chunk {chunk}", f"{why}; nothing that is kept needs it")

    def segment(self, segment: Segment) -> None:
        """Check every chunk, needed or not, and remember which copies are whole."""
        damage, whole = "", 0
        try:
            segment.check_header(self.replica.source)
        except Damage as error:
            damage = str(error)
        for at, header, end in segment.chunks():
            where = f"{segment.name} bytes {at} to {end - 1}"
            if header is None:
                self.note(where, "no chunk begins here: torn, or a damaged header")
                continue
            digest = header.plain_digest
            try:
                chunk_plain(read_at(segment.fd, at, end - at))
            except Damage as error:
                self.note(f"{where} (chunk {header.chunk})", str(error))
                digest = b""
            whole += bool(digest)
            row = (header.chunk, segment.number, at, end, digest)
            self.state.db.execute("INSERT INTO copy VALUES (?, ?, ?, ?, ?)", row)
            self.chunks, self.bytes = self.chunks + 1, self.bytes + end - at
        if damage and whole:
            self.replica.find_damage(segment.name, damage)
        elif damage:
            self.note(segment.name, f"{damage}, and it holds no whole chunk: torn at its beginning")

    def point(self, point: Manifest, harmed: dict[int, dict[bytes, list[int]]]) -> None:
        """Name the paths of this recovery point whose chunks are lost."""
        self.state.reach(self.replica.chain(point))
        lost = "SELECT DISTINCT file, chunk FROM extent WHERE kind = 0 AND chunk IN lost"
        for file, chunk in self.state.db.execute(lost).fetchall():
            for path in self.state.paths(file):
                harmed[chunk].setdefault(path, []).append(point.number)

    def note(self, what: str, why: str) -> None:
        self.notes.append({"what": what, "why": why, "harms": []})


# --- The command line --------------------------------------------------------------------------


def printable(name: bytes) -> str:
    """A name as text; bytes that are none, and control characters, as escapes."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def name_document(name: bytes) -> Json:
    return {"text": printable(name), "base64": base64.b64encode(name).decode()}


def time_text(time_ns: int) -> str:
    moment = datetime.fromtimestamp(time_ns // 10**9, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ns % 10**9:09}Z"


def points_command(replica: Replica, _options: argparse.Namespace) -> tuple[Json, int]:
    points: list[Json] = []
    for point in reversed(replica.points):
        document: Json = {"number": point.number, "damage": point.damage or None}
        if not point.damage:
            document["digest"] = point.digest.hex()
            document |= {key: point.head[key] for key in ("kind", "job", "parent", "server")}
            document |= {key: point.tail[key] for key in ("consistency", "partial", "totals")}
            for key in ("taken_at", "received_at"):
                document[key] = time_text(point.tail[key + "_ns"])
        deleted = replica.deleted.get(str(point.number)) or replica.deleted.get("0")
        document["deleted"] = time_text(deleted["due_at_ns"]) if deleted else None
        points.append(document)
    about = {key: replica.about.get(key) for key in ("name", "type", "store")}
    damaged = replica.findings or any(point.damage for point in replica.points)
    document = {"source": replica.source, **about, "points": points, "findings": replica.findings}
    return document, 4 if damaged else 0


def points_text(document: Json) -> Iterator[str]:
    yield f"data source {document['source']} {document['name'] or ''}"
    for point in document["points"]:
        if point["damage"]:
            yield f"{point['number']:>6}  DAMAGED: {point['damage']}"
            continue
        size = "{files} files, {bytes} bytes".format_map({"files": 0, "bytes": 0} | point["totals"])
        line = f"{point['number']:>6}  {point['taken_at']}  {point['consistency']}  {size}"
        line += "  partial" if point["partial"] else ""
        yield line + (f"  deleted, gone after {point['deleted']}" if point["deleted"] else "")
    yield from findings_text(document["findings"])


def state_of(replica: Replica, options: argparse.Namespace) -> State:
    state = State()
    state.reach(replica.chain(replica.point(options.point)))
    return state


def list_command(replica: Replica, options: argparse.Namespace) -> tuple[Json, int]:
    state = state_of(replica, options)
    names, file = state.find(os.fsencode("".join(options.paths)))
    found = [(names[-1] if names else b"", file)]
    if state.inode(file).type == "d":
        found = list(state.entries(file))
    entries = []
    for name, inside in found:
        inode = state.inode(inside)
        entry = {"name": name_document(name), "type": inode.type, "mode": inode.mode}
        entry |= {"uid": inode.uid, "gid": inode.gid, "size": inode.size}
        entry |= {"mtime": time_text(inode.mtime_ns), "changing": bool(inode.changing)}
        entry["target"] = name_document(inode.target) if inode.type == "l" else None
        entry["xattrs"] = [name_document(xattr) for xattr, _ in state.xattrs(inside)]
        entries.append(entry)
    path = name_document(b"/".join(names))
    return {"point": state.number, "path": path, "entries": entries}, 0


def list_text(document: Json) -> Iterator[str]:
    for entry in document["entries"]:
        mode = stat.filemode(TYPE_BITS[entry["type"]] | entry["mode"])
        line = f"{mode} {entry['uid']:>6} {entry['gid']:>6} {entry['size']:>12} {entry['mtime']}"
        target = f" -> {entry['target']['text']}" if entry["target"] else ""
        yield f"{line} {entry['name']['text']}{target}"


def restore_command(replica: Replica, options: argparse.Namespace) -> tuple[Json, int]:
    state = state_of(replica, options)
    wanted: Wanted = {} if options.paths else None
    for path in options.paths:
        wanted = add_path(wanted, state.find(os.fsencode(path))[0])
    os.makedirs(options.to, exist_ok=True)
    root = os.open(options.to, os.O_RDONLY | os.O_DIRECTORY)
    if os.listdir(root):
        hint = "restore into a folder of its own, then move what you need"
        raise Refusal(2, "reader.not_empty", f"{options.to} is not empty", hint)
    restore = Restore(state, Chunks(state, replica.segments), root, devices=options.devices)
    restore.run(wanted)
    issues = [
        {"path": name_document(path), "why": [why or code]} for path, code, why in state.issues
    ]
    document = {"point": state.number, "to": options.to, "files": restore.files}
    document |= {"bytes": restore.bytes, "harmed": restore.harmed, "left_out": restore.left_out}
    return document | {"issues": issues}, 4 if restore.harmed or restore.left_out else 0


def add_path(wanted: Wanted, names: list[bytes]) -> Wanted:
    """`wanted` with one path more."""
    if wanted is None or not names:
        return None
    return wanted | {names[0]: add_path(wanted.get(names[0], {}), names[1:])}


def restore_text(document: Json) -> Iterator[str]:
    counts = f"{document['files']} files, {document['bytes']} bytes"
    target = printable(os.fsencode(document["to"]))
    yield f"recovery point {document['point']}: {counts} to {target}"
    words = {"issues": "was not kept as it was", "left_out": "left out", "harmed": "DAMAGED"}
    for key, word in words.items():
        for item in document[key]:
            yield f"{word}: {item['path']['text']}: {'; '.join(item['why'])}"


def verify_command(replica: Replica, _options: argparse.Namespace) -> tuple[Json, int]:
    verify = Verify(replica)
    verify.run()
    document: Json = {"points": len(replica.points), "chunks": verify.chunks, "bytes": verify.bytes}
    document |= {"findings": verify.findings, "notes": verify.notes}
    return document, 4 if verify.findings else 0


def verify_text(document: Json) -> Iterator[str]:
    counts = f"{document['chunks']} chunks, {document['bytes']} bytes"
    yield f"read {document['points']} recovery points, {counts}"
    yield from findings_text(document["findings"])
    for note in document["notes"]:
        yield f"note: {note['what']}: {note['why']}"
    yield "DAMAGED" if document["findings"] else "all that is kept is whole"


def findings_text(findings: list[Json]) -> Iterator[str]:
    for finding in findings:
        yield f"DAMAGED: {finding['what']}: {finding['why']}"
        for harm in finding["harms"]:
            points = ", ".join(map(str, harm["points"]))
            yield f"  harms {harm['path']['text']} in recovery points {points}"


COMMANDS = {
    "points": (points_command, points_text, "list the recovery points"),
    "list": (list_command, list_text, "list a folder of a recovery point"),
    "restore": (restore_command, restore_text, "bring files back"),
    "verify": (verify_command, verify_text, "read everything and check every digest"),
}
PATHS = {"list": " [PATH]", "restore": " --to DIR [PATH ...]"}


def parser() -> argparse.ArgumentParser:
    about = "Lists, restores and checks a Strandline replica folder; nothing is written into it."
    form = argparse.RawDescriptionHelpFormatter
    result = argparse.ArgumentParser(description=about, epilog=EXAMPLES, formatter_class=form)
    commands = result.add_subparsers(dest="command", required=True)
    for name, (_, _, text) in COMMANDS.items():
        usage = f"%(prog)s [options] FOLDER{PATHS.get(name, '')}"
        command = commands.add_parser(
            name, help=text, usage=usage, epilog=EXAMPLES, formatter_class=form
        )
        command.add_argument("folder", metavar="FOLDER")
        command.add_argument("--json", action="store_true", help="one JSON document on stdout")
        if name in ("list", "restore"):
            command.add_argument("--point", type=int, metavar="N", help="default: the newest")
        if name == "restore":
            command.add_argument("--to", metavar="DIR", required=True, help="new or empty")
            command.add_argument("--devices", action="store_true", help="make device nodes too")
    return result


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """Parse; PATHs may stand before and behind options, which argparse alone does not take."""
    options, paths = parser().parse_known_args(arguments)
    options.paths = paths
    most = {"list": 1, "restore": len(paths)}.get(options.command, 0)
    if len(paths) > most or any(path.startswith("-") for path in paths):
        parser().error(f"cannot take {paths} (a PATH that begins with - is written ./-...)")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = options_of(arguments)
    run, text, _ = COMMANDS[options.command]
    try:
        document, status = run(Replica(options.folder), options)
    except (Refusal, Damage, OSError, sqlite3.Error) as error:
        refusal = error if isinstance(error, Refusal) else Refusal(1, "reader.failed", str(error))
        return refuse(refusal, as_json=options.json)
    except KeyboardInterrupt:
        return 130
    for line in [json.dumps(document)] if options.json else text(document):
        print(line)
    return status


def refuse(refusal: Refusal, *, as_json: bool) -> int:
    error = {"code": refusal.code, "message": refusal.message, "hint": refusal.hint}
    if as_json:
        print(json.dumps({"error": error | {"retryable": False, "nearest": refusal.nearest}}))
    nearest = f" (nearest: {', '.join(refusal.nearest)})" if refusal.nearest else ""
    print(*filter(None, [refusal.message + nearest, refusal.hint]), sep="\n", file=sys.stderr)
    return refusal.status


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
