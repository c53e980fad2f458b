"""What stores say about their replicas."""

from __future__ import annotations

from typing import Any

from strandline_console.documents import time_document
from strandline_console.fate import Fate
from strandline_console.site import Site
from strandline_contracts.policy import Hold, Source, hold_key
from strandline_contracts.reading import ReplicaPage, Replicas, ReplicaState
from strandline_runtime.errors import RemoteRefused, Unreachable

ANSWER_WITHIN_S = 15.0


async def replicas_of(site: Site, store: str) -> list[ReplicaState]:
    """Return the replicas of a store by source. Raises Unreachable, RemoteRefused."""
    found: list[ReplicaState] = []
    while True:
        page = await _page(site, store, found[-1].source if found else "")
        found += page.replicas
        if not page.more or not page.replicas:
            return found


async def replica_of(site: Site, source: Source) -> ReplicaState | None:
    """Return the replica of a source, None when its store has none. Raises as `replicas_of`."""
    number = int(source.id, 16)
    page = await _page(site, source.store, f"{number - 1:016x}" if number else "")
    return next((found for found in page.replicas if found.source == source.id), None)


async def known_replicas(site: Site, stores: list[str]) -> dict[str, ReplicaState]:
    """Return by source the replicas of those stores that answer."""
    known: dict[str, ReplicaState] = {}
    for store in stores:
        try:
            known |= {found.source: found for found in await replicas_of(site, store)}
        except (Unreachable, RemoteRefused):
            continue
    return known


async def known_replica(site: Site, source: Source) -> ReplicaState | None:
    """Return the replica of a source if its store answers and has one."""
    try:
        return await replica_of(site, source)
    except (Unreachable, RemoteRefused):
        return None


async def fate_of(site: Site, source: Source) -> Fate:
    """Return which recovery points of a source are held and, where its store answers, deleted."""
    held, _ = await site.policy(hold_key(source.id), Hold)
    replica = await known_replica(site, source)
    return Fate.of_replica(held.points if held is not None else [], replica)


def replica_document(store: str, replica: ReplicaState) -> dict[str, Any]:
    return {
        "store": store,
        "source": replica.source,
        "name": replica.name,
        "type": replica.type,
        "points": replica.points,
        "newest": replica.newest or None,
        "stored_bytes": replica.stored_bytes,
        "live_bytes": replica.live_bytes or None,
        "damaged_chunks": replica.damaged_chunks,
        "inconsistent": replica.inconsistent or None,
        "verified_at": time_document(replica.verified_at_ns),
        **Fate.of_replica([], replica).deleted_document(),
    }


async def _page(site: Site, store: str, after: str) -> ReplicaPage:
    return await site.bus.call(
        "store", store, "replicas", Replicas(after=after), ReplicaPage, timeout_s=ANSWER_WITHIN_S
    )
