"""A store's root folder: who owns it, which replicas are in it, which of them are open."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import apsw

from strandline_replica_store.errors import (
    Busy,
    Damaged,
    IndexDamaged,
    Locked,
    NoSuch,
    means_damage,
    translated,
)
from strandline_replica_store.files import durable
from strandline_replica_store.reading.reader import Reader
from strandline_replica_store.replica.replica import (
    RESERVE_BYTES,
    Identity,
    Replica,
    create,
)
from strandline_replica_store.store.deleted import DeletedFiles
from strandline_replica_store.store.leases import LEASE_S, Leases
from strandline_replica_store.store.purging import Tombstones

MAX_OPEN_REPLICAS = 32
MAX_IDLE_READERS = 2
OPENING_PATIENCE_S = 2.0
"""So long a request waits for a replica that another one opens."""
_SOURCE = re.compile(r"[0-9a-f]{16}\Z")
_MEND_BY_HAND = "Put right what it says, or put it back from a copy: docs/formats/replica.md."


class Store:
    """Owns a root folder until `close`. Methods may be called from any thread, and block."""

    def __init__(
        self,
        root: str,
        *,
        name: str,
        site: str,
        reserve_bytes: int = RESERVE_BYTES,
        lease_s: float = LEASE_S,
    ) -> None:
        self.root = root
        self.name = name
        self.site = site
        self.now_ns: Callable[[], int] = time.time_ns
        """Gives the time of receipt of what comes."""
        self.leases = Leases(lease_s=lease_s)
        self._reserve_bytes = reserve_bytes
        self._guard = threading.Condition()
        self._opening: set[str] = set()
        self._replicas: OrderedDict[str, Replica] = OrderedDict()
        self._lent: Counter[str] = Counter()
        """How many readers of each source are lent: its replica stays open meanwhile."""
        self._readers: dict[str, tuple[int, list[Reader]]] = {}
        """Of each source the generation of its index, and idle readers of that."""
        self.deletions = DeletedFiles(self.folder_of)
        os.makedirs(root, mode=0o700, exist_ok=True)
        self._lock_fd = _lock(os.path.join(root, "store.lock"))
        try:
            self._identify()
            durable.make_folder(os.path.join(root, "replicas"))
            self.tombstones = Tombstones(root)
        except BaseException:
            os.close(self._lock_fd)
            raise

    def _identify(self) -> None:
        """Write store.json, or check that it is ours."""
        path = os.path.join(self.root, "store.json")
        mine = {"format": 1, "store": self.name, "site": self.site}
        if not os.path.exists(path):
            text = json.dumps({**mine, "id": secrets.token_hex(16)}, indent=2)
            durable.write_file_atomically(path, text.encode() + b"\n")
        with open(path, "rb") as file:
            try:
                found = json.load(file)
            except ValueError as error:
                raise Damaged(f"{path} is no JSON: {error}", hint=_MEND_BY_HAND) from error
        for key, value in mine.items():
            if found.get(key) != value:
                raise Damaged(
                    f"{path} says {key} {found.get(key)!r}, this store has {value!r}",
                    hint="Give the store the folder that is its own.",
                )

    def sources(self) -> list[str]:
        """Return the ids of the sources that have a replica here."""
        names = os.listdir(os.path.join(self.root, "replicas"))
        return sorted(name for name in names if _SOURCE.match(name))

    def folder_of(self, source: str) -> str:
        """Return the folder of a source's replica, whether it exists or not; raise NoSuch."""
        if not _SOURCE.match(source):
            raise NoSuch(f"not the id of a source: {source!r}")
        return os.path.join(self.root, "replicas", source)

    def create(self, source: str, name: str, kind: str) -> None:
        """Make the replica of a source if there is none."""
        with translated():
            create(self.folder_of(source), self._identity(source), name, kind)

    def _identity(self, source: str) -> Identity:
        return Identity(source=source, store=self.name, site=self.site)

    def replica(self, source: str) -> Replica:
        """Return the open replica of a source. Raises NoSuch, Busy, and what opening raises."""
        until_s = time.monotonic() + OPENING_PATIENCE_S
        with self._guard:
            # Opening may take long, when an index is made anew: others go on meanwhile.
            while source in self._opening:
                if not self._guard.wait(until_s - time.monotonic()):
                    raise Busy(f"the replica of source {source} is being opened")
            if source in self._replicas:
                self._replicas.move_to_end(source)
                return self._replicas[source]
            folder = self.folder_of(source)
            if not os.path.exists(os.path.join(folder, "replica.json")):
                raise NoSuch(f"source {source} has no replica here")
            self._make_room()
            self._opening.add(source)
        return self._open(source, folder)

    def _open(self, source: str, folder: str) -> Replica:
        replica: Replica | None = None
        try:
            replica = Replica.open(
                folder,
                self._identity(source),
                reserve_bytes=self._reserve_bytes,
                now_ns=self.now_ns,
            )
            return replica
        finally:
            with self._guard:
                self._opening.remove(source)
                if replica is not None:
                    self._replicas[source] = replica
                self._guard.notify_all()

    def reindex(self, source: str) -> None:
        """Make the index of a source's replica anew. Raises NoSuch, Busy, Damaged, StoreError."""
        self.replica(source).reindex()

    def _make_room(self) -> None:
        """Close replicas that nobody uses, longest unused first, until one more may be open.

        Those that receive a job come last, but they come: a server may never end its job, and it
        goes on where it was when the replica is opened again.
        """
        for with_job in (False, True):
            for source, replica in list(self._replicas.items()):
                if len(self._replicas) + len(self._opening) < MAX_OPEN_REPLICAS:
                    return
                if with_job or replica.open_attempt is None:
                    self._close_unused(source, replica)
        if len(self._replicas) + len(self._opening) >= MAX_OPEN_REPLICAS:
            raise Busy(f"{MAX_OPEN_REPLICAS} replicas are being worked on")

    def _close_unused(self, source: str, replica: Replica) -> None:
        if self._lent[source]:
            return
        with suppress(Busy), replica.unused():
            self._replicas.pop(source)
            self._close_readers(source)
            replica.close()

    def is_open(self, source: str) -> bool:
        """Tell whether the replica of a source is open."""
        with self._guard:
            return source in self._replicas

    def forget_readers(self, source: str) -> None:
        """Close idle readers: they hold segments that are gone, and with them their room."""
        with self._guard:
            self._close_readers(source)

    def _close_readers(self, source: str) -> None:
        for reader in self._readers.pop(source, (0, []))[1]:
            reader.close()

    @contextmanager
    def reader(self, source: str) -> Iterator[Reader]:
        """Lend a reader of a source's replica."""
        replica = self.replica(source)
        generation = replica.index_generation
        with self._guard:
            idle = self._idle_readers(source, generation)
            reader = idle.pop() if idle else None
            self._lent[source] += 1
        try:
            reader = reader or _open_reader(replica)
            yield reader
        except (IndexDamaged, apsw.Error) as error:
            cause = error.__cause__ or error
            if means_damage(cause):
                replica.index_is_damaged(generation, str(cause))
                raise IndexDamaged(f"the index: {cause}") from cause
            raise
        finally:
            self._take_back(source, generation, reader)

    def _idle_readers(self, source: str, generation: int) -> list[Reader]:
        """Return the idle readers of an index; those of an index before that one are closed."""
        kept, idle = self._readers.get(source, (generation, []))
        if kept != generation:
            for reader in idle:
                reader.close()
            idle = []
        self._readers[source] = (generation, idle)
        return idle

    def _take_back(self, source: str, generation: int, reader: Reader | None) -> None:
        with self._guard:
            self._lent[source] -= 1
            if not self._lent[source]:
                del self._lent[source]
            if reader is None:
                return
            kept, idle = self._readers.get(source, (-1, []))
            if kept == generation and len(idle) < MAX_IDLE_READERS:
                idle.append(reader)
            else:
                reader.close()

    def take_away(self, source: str, name: str) -> None:
        """Close the replica of a source and rename its folder: then the source has none here.

        Who still reads it gets errors. Raises OSError.
        """
        with self._guard:
            while source in self._opening:
                self._guard.wait()
            self._close_readers(source)
            replica = self._replicas.pop(source, None)
            if replica is not None:
                replica.close()
            folder = self.folder_of(source)
            durable.rename(folder, os.path.join(os.path.dirname(folder), name))

    def close(self) -> None:
        """Close every replica and let go of the root."""
        with self._guard:
            for source in list(self._readers):
                self._close_readers(source)
            while self._replicas:
                self._replicas.popitem()[1].close()
            os.close(self._lock_fd)


def _open_reader(replica: Replica) -> Reader:
    try:
        return Reader(replica.folder)
    except apsw.CantOpenError:
        # Another index may just have been put in the place of the one that was there.
        with replica.steady_index():
            return Reader(replica.folder)


def _lock(path: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise Locked(f"another process owns {os.path.dirname(path)}") from error
    return fd
