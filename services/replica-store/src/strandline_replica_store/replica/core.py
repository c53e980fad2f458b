"""What the layers of a replica's writer share: its folder, lock, index, and events."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple, Protocol

import apsw
from blake3 import blake3

from strandline_contracts.events import DamageFound, Data
from strandline_contracts.points import RecoveryPoint
from strandline_replica_store.errors import (
    Busy,
    Damaged,
    Full,
    IndexDamaged,
    means_damage,
    translated,
)
from strandline_replica_store.files import durable, segment
from strandline_replica_store.files.manifest import ManifestWriter
from strandline_replica_store.replica import index, mend
from strandline_replica_store.replica.index import ChunkRow
from strandline_replica_store.replica.rules import JobRow
from strandline_runtime import outbox

_GENERATIONS = count()
INCONSISTENT = "inconsistent"
"""The key in `meta` of why a replica takes no express full."""
RESERVE_BYTES = 256 * 1024 * 1024

ABOUT = (
    "A Strandline replica: every kept state of one data source. Segments and manifests hold all of"
    " it; index.db is made from them. How to read it: docs/formats/replica.md of Strandline."
)


class Identity(NamedTuple):
    """Whose replica this is, and in whose name it tells events."""

    source: str
    store: str
    site: str

    @property
    def origin(self) -> str:
        return f"store-{self.store}"


def create(folder: str, identity: Identity, name: str, kind: str) -> None:
    """Make the folder of a replica; harmless when it is there already."""
    durable.make_folder(folder)
    path = os.path.join(folder, "replica.json")
    if not os.path.exists(path):
        about = {
            "format": 1,
            "source": identity.source,
            "name": name,
            "type": kind,
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "store": identity.store,
            "era": 0,
            "about": ABOUT,
        }
        durable.write_file_atomically(path, json.dumps(about, indent=2).encode() + b"\n")


def era_of(folder: str) -> int:
    """Return the era in which the replica gives chunk ids."""
    path = os.path.join(folder, "replica.json")
    try:
        with open(path, "rb") as file:
            return int(json.load(file).get("era", 0))
    except (ValueError, TypeError, AttributeError) as error:
        hint = "Put right what it says, or put it back from a copy: docs/formats/replica.md."
        raise Damaged(f"{path} cannot be read: {error}", hint=hint) from error


class Lock(Protocol):
    """threading's Lock and RLock, which are functions to a type checker."""

    def acquire(self, blocking: bool = True) -> bool: ...
    def release(self) -> None: ...


@contextmanager
def at_once(lock: Lock) -> Iterator[None]:
    """Hold a lock; raise Busy where somebody else does."""
    if not lock.acquire(blocking=False):
        raise Busy("its manifests or chunks are being rewritten")
    try:
        yield
    finally:
        lock.release()


def next_generation() -> int:
    """Return a number that no index of this process had before."""
    return next(_GENERATIONS)


class ReplicaCore:
    """The part of a Replica that the others build on."""

    def __init__(
        self,
        folder: str,
        identity: Identity,
        *,
        reserve_bytes: int = RESERVE_BYTES,
        segment_limit_bytes: int = segment.SEGMENT_LIMIT_BYTES,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.folder = folder
        self.identity = identity
        self.segments_folder = os.path.join(folder, "segments")
        self.manifests_folder = os.path.join(folder, "manifests")
        self.staging_folder = os.path.join(folder, "staging")
        self.damaged_folder = os.path.join(folder, "damaged")
        self.index_path = os.path.join(folder, "index.db")
        self._reserve_bytes = reserve_bytes
        self._now_ns = now_ns
        self._lock = threading.RLock()
        self.maintenance = threading.RLock()
        """Held by who changes manifests or segments that are there: one at a time."""
        self.rewriting = threading.Lock()
        """Held by the one that moves chunks."""
        self.segment_numbers = segment.SegmentNumbers(self.segments_folder)
        self.segment_limit_bytes = segment_limit_bytes
        self._segments = segment.SegmentWriter(
            self.segments_folder, identity.source, segment_limit_bytes, self.segment_numbers
        )
        self._index: apsw.Connection | None = None
        self._job: JobRow | None = None
        self._part: ManifestWriter | None = None
        self._batches = blake3()
        self._next_chunk = 1
        self._newest: RecoveryPoint | None = None
        self._behind = False
        self._rows_ahead: list[tuple[int, int]] = []
        """Segments and from where on their bytes were cut off, the index still having the rows."""
        self._ended: JobRow | None = None
        self._broken: Damaged | None = None
        self._lost: list[int] = []
        self._leftover: frozenset[int] = frozenset()
        self._index_damage = ""
        self._rebuilding = False
        self._made_anew = False
        self._closed = False
        self.index_generation = next_generation()
        """Another each time that the index is opened or made anew: who reads opens it again."""
        self.order_generation = 0
        """Another, higher, each time that extents may have gone back to chunks from which they were
        moved: who has read a page of extents, in order of chunk, may have passed those already."""

    @property
    def _conn(self) -> apsw.Connection:
        assert self._index is not None
        return self._index

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Hold the replica, its index made anew first if it was found damaged."""
        if self._rebuilding:
            raise IndexDamaged("the index is being made anew")
        with self._lock, translated():
            if self._closed:
                raise Busy("the replica was closed meanwhile")
            if self._index_damage:
                self._mend_index()
            try:
                yield
            except apsw.Error as error:
                if means_damage(error):
                    self._index_damage = str(error)
                raise

    def _mend_index(self) -> None:
        """Make the damaged index anew, but not beside who moves chunks: he ends at once for it.

        What is being moved lies there twice, and the copy may be cut off again.
        """
        if not self.rewriting.acquire(blocking=False):
            raise IndexDamaged("the index is made anew once no chunks are being moved")
        try:
            self._make_index_anew(self._index_damage)
        finally:
            self.rewriting.release()

    @contextmanager
    def steady_index(self) -> Iterator[None]:
        """Hold the index: nobody writes it or puts another in its place meanwhile."""
        with self._working():
            yield

    @contextmanager
    def _reading_index(self) -> Iterator[None]:
        """Translate errors of a connection of one's own to the index; take note of damage."""
        generation = self.index_generation
        try:
            with translated():
                yield
        except IndexDamaged as error:
            self.index_is_damaged(generation, str(error.__cause__ or error))
            raise

    def index_is_damaged(self, generation: int, reason: str) -> None:
        """Take note that a reader of the index of that generation found it damaged."""
        if self._rebuilding:
            return
        with self._lock:
            if generation == self.index_generation:
                self._index_damage = reason

    def on_database(self, function: Callable[[apsw.Connection], Any]) -> Any:
        """Run a function on the index's writing connection, as one transaction."""
        with self._working(), index.transaction(self._conn):
            return function(self._conn)

    def tell(self, conn: apsw.Connection, noun: str, verb: str, data: Data) -> None:
        """Record an event of this replica, inside the transaction of what it tells."""
        outbox.record(
            conn,
            site=self.identity.site,
            origin=self.identity.origin,
            noun=noun,
            verb=verb,
            source=self.identity.source,
            time_ns=self._now_ns(),
            data=data,
        )

    @property
    def newest(self) -> RecoveryPoint | None:
        """The newest recovery point."""
        return self._newest

    @contextmanager
    def within(self, patience_s: float) -> Iterator[None]:
        """Hold the replica; raise Busy where another thread works in it for longer than that."""
        if not self._lock.acquire(timeout=patience_s):
            raise Busy("another thread works in the replica")
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def unused(self) -> Iterator[None]:
        """Hold the replica while nobody works in it; raise Busy at once where somebody does."""
        with at_once(self.rewriting), self.within(0):
            yield

    @property
    def open_attempt(self) -> JobRow | None:
        """The attempt that is being received."""
        return self._job

    def inconsistent(self) -> str:
        """Return why the replica is inconsistent, empty when it is not."""
        with self._working():
            return index.get_meta(self._conn, INCONSISTENT)

    def mark_inconsistent(self, reason: str) -> None:
        """Refuse express fulls until a consistency check has been committed."""
        self.on_database(lambda conn: index.put_meta(conn, INCONSISTENT, reason))

    @property
    def room_bytes(self) -> int:
        """How many bytes may be written before the disk counts as full."""
        return durable.free_bytes(self.folder) - self._reserve_bytes

    def _check_room(self) -> None:
        free_bytes = durable.free_bytes(self.folder)
        if free_bytes < self._reserve_bytes:
            raise Full(
                f"{free_bytes >> 20} MiB are free on the store's disk,"
                f" {self._reserve_bytes >> 20} MiB must be"
            )

    def record_damage(self, damage: DamageFound) -> None:
        """Tell of damage, once for each chunk: a damaged chunk is not read nor relied on.

        A chunk that lies elsewhere by now was mended or moved meanwhile: nothing is told. Nor is
        each one told where very many are damaged (mend.MAX_TOLD).
        """

        def change(conn: apsw.Connection) -> None:
            if damage.chunk:
                conn.execute(
                    "UPDATE chunk SET bad = 1"
                    " WHERE id = ? AND NOT bad AND segment = ? AND offset = ?",
                    (damage.chunk, damage.segment, damage.offset),
                )
                if not conn.changes() or mend.are_many_bad(conn):
                    return
            self.tell(conn, "damage", "found", damage)

        self.on_database(change)

    def take_back_damage(self, rows: Iterable[ChunkRow]) -> None:
        """Rely again on chunks that were found damaged and are sound when read again."""

        def change(conn: apsw.Connection) -> None:
            query = "SELECT 1 FROM chunk WHERE id = ? AND segment = ? AND offset = ? AND bad"
            places = ((row.id, row.segment, row.offset) for row in rows)
            back = [place[0] for place in places if conn.execute(query, place).fetchone()]
            self.tell_mended(back, "store")
            conn.executemany("UPDATE chunk SET bad = 0 WHERE id = ?", ((chunk,) for chunk in back))

        self.on_database(change)

    def tell_mended(self, chunks: Collection[int], by: str) -> None:
        """Tell, inside the transaction that makes it so, that damaged chunks are whole again.

        Call it before that: while very many are damaged, single ones are not told.
        """
        if chunks and not mend.are_many_bad(self._conn):
            for chunk in chunks:
                told = mend.repaired(self._conn, chunk, by)
                self.tell(self._conn, "damage", "repaired", told)

    def _make_index_anew(self, reason: str, *, is_damage: bool = True) -> None:
        """Make another index and put it in the place of this one; a Replica knows how."""
        raise NotImplementedError
