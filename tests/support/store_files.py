"""Where each structure lies in a store's files, and what a damaged store still tells.

The places are worked out from docs/formats/replica.md and SQLite's file format alone.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from strandline_contracts.events import DamageFound
from strandline_replica_store.checking.verify import verify
from strandline_replica_store.errors import IndexDamaged, StoreError
from strandline_replica_store.reading.reader import Reader
from strandline_replica_store.replica.rules import OpenVerdict
from strandline_replica_store.store.store import Store
from strandline_runtime import outbox
from support.replicas import IDENTITY, SERVER, SOURCE, open_of
from support.source_model import Shipment, state_of
from support.workload import point_numbers

_T = TypeVar("_T")
_POINTS = re.compile(r"recovery points? (\d+(?:, \d+)*)")
_TRIES = 3
"""So often a question is asked again that found the index damaged: it is made anew meanwhile."""


class Place(NamedTuple):
    """Some bytes of a file that are one structure."""

    structure: str
    path: str
    offset: int
    size_bytes: int


class Field(NamedTuple):
    name: str
    offset: int
    size_bytes: int


_SEGMENT_FIELDS = [
    Field("magic", 0, 8),
    Field("number", 8, 8),
    Field("source", 16, 16),
    Field("zeros", 32, 24),
    Field("seal", 56, 8),
]
_CHUNK_FIELDS = [
    Field("magic", 0, 4),
    Field("version", 4, 1),
    Field("codec", 5, 1),
    Field("cipher", 6, 1),
    Field("flags", 7, 1),
    Field("id", 8, 8),
    Field("plain bytes", 16, 4),
    Field("stored bytes", 20, 4),
    Field("key id", 24, 16),
    Field("nonce", 40, 12),
    Field("zeros", 52, 12),
    Field("plain digest", 64, 32),
    Field("stored digest", 96, 32),
    Field("zeros", 128, 8),
    Field("seal", 136, 8),
]
_FRAME_FIELDS = [
    Field("magic", 0, 4),
    Field("type", 4, 1),
    Field("codec", 5, 1),
    Field("cipher", 6, 1),
    Field("zero", 7, 1),
    Field("plain bytes", 8, 4),
    Field("stored bytes", 12, 4),
    Field("key id", 16, 16),
    Field("nonce", 32, 12),
    Field("zeros", 44, 4),
    Field("digest", 48, 16),
]
_FRAMES = {1: "head", 2: "delta", 3: "tail"}
_PAGES = {2: "interior (index)", 5: "interior (table)", 10: "leaf (index)", 13: "leaf (table)"}


def places(root: Path) -> Iterator[Place]:
    """Yield every structure of every file below a store's root."""
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = str(path.relative_to(root))
        data = path.read_bytes()
        if path.suffix == ".sls":
            yield from _of_segment(name, data)
        elif path.suffix in (".slm", ".part"):
            yield from _of_frames("manifest" if path.suffix == ".slm" else "part", name, data)
        elif path.suffix == ".json":
            yield Place(path.name, name, 0, len(data))
        elif path.name == "index.db":
            yield from _of_database(name, data)
        elif path.name == "index.db-wal":
            yield from _of_log(name, data)


def _of_segment(name: str, data: bytes) -> Iterator[Place]:
    for field in _SEGMENT_FIELDS:
        yield Place(f"segment header: {field.name}", name, field.offset, field.size_bytes)
    offset = 64
    while offset < len(data):
        (stored_bytes,) = struct.unpack_from("<I", data, offset + 20)
        for field in _CHUNK_FIELDS:
            at = offset + field.offset
            yield Place(f"chunk header: {field.name}", name, at, field.size_bytes)
        yield Place("chunk: stored bytes", name, offset + 144, stored_bytes)
        offset += 144 + stored_bytes


def _of_frames(kind: str, name: str, data: bytes) -> Iterator[Place]:
    offset = 0
    while offset < len(data):
        (stored_bytes,) = struct.unpack_from("<I", data, offset + 12)
        frame = f"{kind} {_FRAMES[data[offset + 4]]}"
        for field in _FRAME_FIELDS:
            at = offset + field.offset
            yield Place(f"{frame} header: {field.name}", name, at, field.size_bytes)
        yield Place(f"{frame}: stored bytes", name, offset + 64, stored_bytes)
        offset += 64 + stored_bytes


def _of_database(name: str, data: bytes) -> Iterator[Place]:
    (page_bytes,) = struct.unpack_from(">H", data, 16)
    free = _free_pages(data, page_bytes)
    reserved = data[20]
    yield Place("index.db: header", name, 0, 100)
    for offset in range(0, len(data), page_bytes):
        at = offset + 100 if offset == 0 else offset
        kind = _PAGES.get(data[at], "overflow")
        kind = free.get(offset // page_bytes + 1, kind)
        end = offset + page_bytes - reserved
        yield Place(f"index.db: {kind} page, header", name, at, 8)
        yield Place(f"index.db: {kind} page, content", name, at + 8, end - at - 8)
        yield Place("index.db: check sum of a page", name, end, reserved)


def _free_pages(data: bytes, page_bytes: int) -> dict[int, str]:
    """Return the numbers of pages on the list of free ones."""
    free: dict[int, str] = {}
    (trunk,) = struct.unpack_from(">I", data, 32)
    while trunk:
        free[trunk] = "freelist trunk"
        at = (trunk - 1) * page_bytes
        following, count = struct.unpack_from(">II", data, at)
        for leaf in struct.unpack_from(f">{count}I", data, at + 8):
            free[leaf] = "freelist leaf"
        trunk = following
    return free


def _of_log(name: str, data: bytes) -> Iterator[Place]:
    if not data:
        return
    (page_bytes,) = struct.unpack_from(">I", data, 8)
    yield Place("index.db-wal: header", name, 0, 32)
    for offset in range(32, len(data), 24 + page_bytes):
        yield Place("index.db-wal: frame header", name, offset, 24)
        yield Place("index.db-wal: frame content", name, offset + 24, page_bytes)


class Told(NamedTuple):
    """What a store tells of a replica that may be damaged."""

    points: dict[int, str | None]
    """What each recovery point restores; None where the store refuses."""
    complaints: list[str]
    named: set[int]
    """The recovery points that are said to be harmed."""


def examine(root: Path, going_on: Shipment | None = None) -> Told:
    """Open a store, restore every recovery point, verify, offer a job; never raises StoreError.

    `going_on` is the job that was being received; if it can be finished, its point is among them.
    """
    told = Told({}, [], set())
    try:
        store = Store(str(root), name=IDENTITY.store, site=IDENTITY.site, reserve_bytes=0)
    except StoreError as error:
        told.complaints.append(str(error))
        return told
    try:
        _ask(store, told, going_on)
    except StoreError as error:
        told.complaints.append(str(error))
    finally:
        store.close()
    for text in told.complaints:
        for listed in _POINTS.findall(text):
            told.named.update(map(int, listed.split(", ")))
    return told


def _ask(store: Store, told: Told, going_on: Shipment | None) -> None:
    replica = _again(lambda: store.replica(SOURCE))
    attempt = replica.open_attempt
    if going_on is not None and attempt is not None:
        try:
            for message in going_on.messages[attempt.durable :]:
                replica.take(going_on.job, going_on.attempt, [message])
            replica.finish(going_on.end)
        except StoreError as error:
            told.complaints.append(str(error))
    _look_after(store)
    for number in _read(store, point_numbers):
        try:
            told.points[number] = _read(store, partial(state_of, point=number))
        except StoreError as error:
            told.points[number] = None
            told.complaints.append(f"point {number}: {error}")
            told.named.add(number)
    damages: list[DamageFound] = []
    _read(store, lambda reader: verify(reader, replica.newest, on_damage=damages.append))
    rows = _again(lambda: replica.on_database(lambda conn: outbox.pending(conn, 1000)))
    damages += [event.data for _, event in rows if isinstance(event.data, DamageFound)]
    for damage in damages:
        told.complaints.append(_place(damage) + damage.reason)
        told.named.update(damage.points)
    try:
        opened = _again(lambda: replica.open_job(SERVER, open_of(replica, "offered")))
        assert opened is OpenVerdict.FRESH
    except StoreError as error:
        told.complaints.append(str(error))


def _read(store: Store, ask: Callable[[Reader], _T]) -> _T:
    def once() -> _T:
        try:
            with store.reader(SOURCE) as reader:
                return ask(reader)
        except IndexDamaged:
            _look_after(store)
            raise

    return _again(once)


def _look_after(store: Store) -> None:
    """Do what the outbox does every half minute: use the index, which is made anew if need be."""
    _again(lambda: store.replica(SOURCE).on_database(lambda _: None))


def _place(damage: DamageFound) -> str:
    """Return which file of the store is damaged, or which chunk of which files of the source."""
    if damage.segment:
        return f"segment {damage.segment} at {damage.offset}: "
    return f"chunk {damage.chunk} of {damage.files}: " if damage.chunk else ""


def _again(ask: Callable[[], _T]) -> _T:
    for _ in range(_TRIES - 1):
        try:
            return ask()
        except IndexDamaged:
            continue
    return ask()


def as_text(told: Told) -> str:
    """Return all of it on a few lines, for a person."""
    return msgspec.json.format(msgspec.json.encode(told)).decode()
