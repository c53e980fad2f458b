"""What a store tells of each of its replicas: figures that cost no walk over chunks."""

from __future__ import annotations

import json
import os
from contextlib import suppress

from strandline_contracts.reading import ReplicaState
from strandline_replica_store.checking import scrub
from strandline_replica_store.compaction.compact import known_live_bytes
from strandline_replica_store.errors import StoreError, translated
from strandline_replica_store.reading.reader import Reader
from strandline_replica_store.replica import index
from strandline_replica_store.replica.core import INCONSISTENT
from strandline_replica_store.store.deleted import DeletedDamaged, Deletion
from strandline_replica_store.store.store import Store


def state_of(store: Store, source: str) -> ReplicaState:
    """Return the state of a source's replica; of one that cannot be opened, what can be said.

    Raises DiskError.
    """
    folder = store.folder_of(source)
    with translated():
        name, kind = _about(folder)
        deletions = _deletions(store, source)
        stored_bytes = _size_bytes(folder)
    points = newest = damaged_chunks = verified_at_ns = live_bytes = 0
    try:
        # By a reader alone: the replica itself answers nobody while it commits.
        with store.reader(source) as reader, translated():
            inconsistent = index.get_meta(reader.conn, INCONSISTENT)
            points, newest = _points(reader)
            verified_at_ns, damaged_chunks = scrub.verified(reader.conn)
            live_bytes = known_live_bytes(reader.conn)
    except StoreError as error:
        inconsistent = f"it cannot be read now: {error.message}"
    return ReplicaState(
        source=source,
        name=name,
        type=kind,
        points=points,
        newest=newest,
        stored_bytes=stored_bytes,
        live_bytes=live_bytes,
        damaged_chunks=damaged_chunks,
        inconsistent=inconsistent,
        verified_at_ns=verified_at_ns,
        deleted=sorted(deletions),
        due_at_ns=max((each.due_at_ns for each in deletions.values()), default=0),
    )


def _about(folder: str) -> tuple[str, str]:
    """Return name and type as replica.json says; empty when it is damaged."""
    try:
        with open(os.path.join(folder, "replica.json"), "rb") as file:
            about = json.load(file)
        return str(about["name"]), str(about["type"])
    except (ValueError, LookupError, TypeError):
        return "", ""


def _deletions(store: Store, source: str) -> dict[int, Deletion]:
    try:
        return store.deletions.of(source)
    except DeletedDamaged:
        return {}


def _points(reader: Reader) -> tuple[int, int]:
    """Return how many recovery points there are, and the newest."""
    row = reader.conn.execute("SELECT count(*), max(number) FROM point").fetchone()
    return (int(row[0]), int(row[1] or 0)) if row else (0, 0)


def _size_bytes(folder: str) -> int:
    """Return what segments and manifests take."""
    size_bytes = 0
    for name in ("segments", "manifests"):
        path = os.path.join(folder, name)
        for file in os.listdir(path) if os.path.isdir(path) else []:
            # Compaction may unlink one meanwhile.
            with suppress(FileNotFoundError):
                size_bytes += os.stat(os.path.join(path, file)).st_size
    return size_bytes
