"""Takes a deleted replica away for good, so that a kill at any moment is only a pause.

The rename to `replicas/.purged-<source>-<time>` is the moment from which it is gone. Whatever
finds such a folder goes on: event, tombstone, files, folder.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable

import msgspec

from strandline_replica_store.errors import Damaged, StoreError
from strandline_replica_store.files import checked_json, durable

MAX_TOMBSTONES = 4096
_PURGED = re.compile(r"\.purged-([0-9a-f]{16})-([0-9]{1,19})\Z")


class _File(msgspec.Struct, frozen=True, kw_only=True):
    """What purged.json in a store's root holds: when the replica of a source was purged."""

    format: int = 1
    purged: dict[str, int] = {}


class Tombstones:
    """The sources whose replicas were purged here, the latest MAX_TOMBSTONES of them.

    A replica is made only for a job that a server opens, and only while its signed assignment
    protects the source. For a source with a tombstone that assignment is read anew each time: what
    the store remembers from before does not count. Methods block, from any thread.
    """

    def __init__(self, root: str) -> None:
        self._path = os.path.join(root, "purged.json")
        self._lock = threading.Lock()
        self._purged = _read(self._path)

    def purged_at_ns(self, source: str) -> int:
        """Return when a source's replica was purged last, 0 for never."""
        return self._purged.get(source, 0)

    def add(self, source: str, at_ns: int) -> None:
        """Remember a purge, for good. Raises OSError."""
        with self._lock:
            purged = {**self._purged, source: at_ns}
            while len(purged) > MAX_TOMBSTONES:
                del purged[min(purged, key=purged.__getitem__)]
            checked_json.write(self._path, _File(purged=purged))
            self._purged = purged


def _read(path: str) -> dict[str, int]:
    try:
        found = checked_json.read(path, _File)
    except Damaged:
        # It only makes the store look twice: not worth a refusal to start.
        return {}
    return found.purged if found else {}


def name_of(source: str, at_ns: int) -> str:
    """Return what the folder of a replica is called once it is purged."""
    return f".purged-{source}-{at_ns}"


def resume(
    replicas: str,
    tombstones: Tombstones,
    tell: Callable[[str, int], None],
    stop: threading.Event,
) -> None:
    """Finish every purge that was begun below the folder `replicas`, until `stop`.

    `tell(source, at_ns)` is called once the replica can never come back, before that is
    remembered: after a crash perhaps once more. Raises OSError, and what `tell` raises.
    """
    for name in sorted(os.listdir(replicas)):
        found = _PURGED.match(name)
        if found is None or stop.is_set():
            continue
        source, at_ns = found[1], int(found[2])
        durable.sync_folder(replicas)
        folder = os.path.join(replicas, name)
        if tombstones.purged_at_ns(source) < at_ns:
            try:
                tell(source, at_ns)
                tombstones.add(source, at_ns)
            except (OSError, StoreError):
                # Most often the disk is full: make room, and tell it the next time.
                remove_tree(os.path.join(folder, "segments"), stop)
                raise
        remove_tree(folder, stop)


def remove_tree(folder: str, stop: threading.Event) -> None:
    """Remove a folder, if there is one, and all below it, or what there is time for."""
    if not os.path.isdir(folder):
        return
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in files:
            if stop.is_set():
                return
            os.unlink(os.path.join(parent, name))
        for name in folders:
            path = os.path.join(parent, name)
            if os.path.islink(path):
                os.unlink(path)
            else:
                os.rmdir(path)
    os.rmdir(folder)
