"""A store's root folder: who owns it, which replicas are in it, which of them are open."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from strandline_replica_store import durable
from strandline_replica_store.errors import Busy, Damaged, Locked, NoSuch
from strandline_replica_store.reader import Reader
from strandline_replica_store.replica import (
    RESERVE_BYTES,
    Identity,
    Replica,
    create,
    translated,
)

MAX_OPEN_REPLICAS = 32
MAX_IDLE_READERS = 2
_SOURCE = re.compile(r"[0-9a-f]{16}\Z")


class Store:
    """Owns a root folder until `close`. Methods may be called from any thread, and block."""

    def __init__(
        self, root: str, *, name: str, site: str, reserve_bytes: int = RESERVE_BYTES
    ) -> None:
        self.root = root
        self.name = name
        self.site = site
        self._reserve_bytes = reserve_bytes
        self._guard = threading.RLock()
        self._replicas: OrderedDict[str, Replica] = OrderedDict()
        self._readers: dict[str, list[Reader]] = {}
        os.makedirs(root, mode=0o700, exist_ok=True)
        self._lock_fd = _lock(os.path.join(root, "store.lock"))
        try:
            self._identify()
            durable.make_folder(os.path.join(root, "replicas"))
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
            found = json.load(file)
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
        with self._guard:
            replica = self._replicas.get(source)
            if replica is None:
                folder = self.folder_of(source)
                if not os.path.exists(os.path.join(folder, "replica.json")):
                    raise NoSuch(f"source {source} has no replica here")
                self._make_room()
                replica = Replica.open(
                    folder, self._identity(source), reserve_bytes=self._reserve_bytes
                )
                self._replicas[source] = replica
            self._replicas.move_to_end(source)
            return replica

    def _make_room(self) -> None:
        """Close replicas that are idle, longest unused first, until one more may be open."""
        for source in list(self._replicas):
            if len(self._replicas) < MAX_OPEN_REPLICAS:
                return
            if not self._replicas[source].busy:
                self._replicas.pop(source).close()
                for reader in self._readers.pop(source, []):
                    reader.close()
        if len(self._replicas) >= MAX_OPEN_REPLICAS:
            raise Busy(f"{MAX_OPEN_REPLICAS} jobs are being received")

    @contextmanager
    def reader(self, source: str) -> Iterator[Reader]:
        """Lend a reader of a source's replica."""
        self.replica(source)
        with self._guard:
            idle = self._readers.setdefault(source, [])
            reader = idle.pop() if idle else Reader(self.folder_of(source))
        try:
            yield reader
        finally:
            with self._guard:
                back = self._readers.get(source)
                if back is not None and len(back) < MAX_IDLE_READERS:
                    back.append(reader)
                else:
                    reader.close()

    def close(self) -> None:
        """Close every replica and let go of the root."""
        with self._guard:
            for readers in self._readers.values():
                for reader in readers:
                    reader.close()
            self._readers.clear()
            while self._replicas:
                self._replicas.popitem()[1].close()
            os.close(self._lock_fd)


def _lock(path: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise Locked(f"another process owns {os.path.dirname(path)}") from error
    return fd
