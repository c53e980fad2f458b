"""`strandline status`: each service, each data source, the disk."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from strandline_console.documents import (
    job_document,
    point_document,
    source_document,
    status_document,
)
from strandline_console.errors import DONE, FAILED
from strandline_console.fate import Fate
from strandline_console.outcome import print_document
from strandline_console.points import points_after
from strandline_console.replicas import known_replicas
from strandline_console.site import Site, now_ns
from strandline_console.text import ago_text, size_text, table
from strandline_contracts.names import Role
from strandline_contracts.policy import Hold, Source
from strandline_contracts.queries import SourceList, Sources, SourceState, Status, StatusIs
from strandline_runtime.errors import RemoteRefused, Unreachable

ANSWER_WITHIN_S = 3.0


async def show_status(site: Site, *, as_json: bool) -> int:
    """Print how everything is; 0 when all services are ready."""
    sources = await site.sources()
    services = await _services(site, sources)
    states, from_catalog = await _source_states(site, sources)
    fates = await _fates(site, states, from_catalog=from_catalog)
    free_bytes = _free_bytes(site)
    all_ready = all(status is not None and status.ready for _, _, status in services)
    if as_json:
        print_document(
            {
                "ready": all_ready,
                "services": [_service_document(*service) for service in services],
                "sources": [_source_document(state, fates[state.source.id]) for state in states],
                "sources_answered_by": "catalog" if from_catalog else "store",
                "disk_free_bytes": free_bytes,
            }
        )
    else:
        _print(services, states, fates, free_bytes)
    return DONE if all_ready else FAILED


Service = tuple[Role, str, StatusIs | None]


async def _services(site: Site, sources: list[Source]) -> list[Service]:
    settings = site.settings
    servers = dict.fromkeys([*settings.servers, *(one.server for one in sources if one.protected)])
    asked: list[tuple[Role, str]] = [("catalog", settings.catalog)]
    asked += [("scheduler", settings.scheduler)]
    asked += [("store", store) for store in settings.stores]
    asked += [("agent", server) for server in servers]
    answers = await asyncio.gather(*(_status(site, role, name) for role, name in asked))
    return [(role, name, found) for (role, name), found in zip(asked, answers, strict=True)]


async def _status(site: Site, role: Role, instance: str) -> StatusIs | None:
    try:
        return await site.bus.call(
            role, instance, "status", Status(), StatusIs, timeout_s=ANSWER_WITHIN_S
        )
    except (Unreachable, RemoteRefused):
        return None


async def _source_states(site: Site, sources: list[Source]) -> tuple[list[SourceState], bool]:
    """Return each source with its newest point: the catalog's word, else the store's."""
    try:
        known = {state.source.id: state for state in await catalogued(site)}
    except (Unreachable, RemoteRefused):
        return [await _state_from_store(site, source) for source in sources], False
    return [known.get(source.id) or SourceState(source=source) for source in sources], True


async def catalogued(site: Site) -> list[SourceState]:
    """Return all sources that the catalog knows. Raises Unreachable, RemoteRefused."""
    found: list[SourceState] = []
    more = True
    while more:
        request = Sources(after=found[-1].source.name if found else "")
        answer = await site.bus.call(
            "catalog", site.settings.catalog, "sources", request, SourceList
        )
        found += answer.sources
        more = answer.more and bool(answer.sources)
    return found


async def _state_from_store(site: Site, source: Source) -> SourceState:
    try:
        points = await points_after(site, source, 0)
    except (Unreachable, RemoteRefused):
        points = []
    return SourceState(source=source, points=len(points), newest=points[-1] if points else None)


async def _fates(site: Site, states: list[SourceState], *, from_catalog: bool) -> dict[str, Fate]:
    """Return by source what is held, deleted and damaged of it."""
    held = {hold.source: hold.points for hold in await site.documents("hold", Hold)}
    if from_catalog:
        known = [Fate.of_state(held.get(state.source.id, []), state) for state in states]
    else:
        replicas = await known_replicas(site, site.settings.stores)
        ids = [state.source.id for state in states]
        known = [Fate.of_replica(held.get(one, []), replicas.get(one)) for one in ids]
    return {state.source.id: fate for state, fate in zip(states, known, strict=True)}


def _free_bytes(site: Site) -> int | None:
    """Return what is free on the state folder's disk, None when that is not on this host."""
    try:
        disk = os.statvfs(site.settings.state_dir)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize


def _service_document(role: str, instance: str, status: StatusIs | None) -> dict[str, Any]:
    if status is not None:
        return {**status_document(status), "answers": True}
    return {"role": role, "instance": instance, "ready": False, "answers": False}


def _source_document(state: SourceState, fate: Fate) -> dict[str, Any]:
    return {
        **source_document(state.source),
        "points": state.points,
        "newest": point_document(state.newest) if state.newest is not None else None,
        "last_job": job_document(state.last_job) if state.last_job is not None else None,
        "bytes": state.bytes,
        "stored_bytes": state.stored_bytes,
        "held": list(fate.held),
        "damaged_chunks": fate.damaged_chunks,
        **fate.deleted_document(),
    }


def _print(
    services: list[Service],
    states: list[SourceState],
    fates: dict[str, Fate],
    free_bytes: int | None,
) -> None:
    rows = []
    for role, instance, status in services:
        if status is None:
            rows.append([role, instance, "no answer", "-", ""])
            continue
        up_s = (now_ns() - status.started_at_ns) / 1e9
        detail = ", ".join(f"{key} {value}" for key, value in sorted(status.detail.items()))
        ready = "ready" if status.ready else "not ready"
        rows.append([role, instance, ready, ago_text(up_s), detail])
    print(table(["SERVICE", "NAME", "STATE", "UP", "DETAIL"], rows))
    print()
    if states:
        head = ["SOURCE", "SERVER", "GROUP", "POINTS", "NEWEST", "SIZE", "STORED", "LAST JOB"]
        print(table(head, [_row(state) for state in states], right="POINTS SIZE STORED"))
        for state in states:
            for remark in fates[state.source.id].remarks():
                print(f"{state.source.name}: {remark}")
    else:
        print("Nothing is protected yet: strandline protect PATH --name NAME")
    if free_bytes is not None:
        print(f"\n{size_text(free_bytes)} free on the disk of the state folder")


def _row(state: SourceState) -> list[str]:
    newest = "none"
    if state.newest is not None:
        newest = f"{ago_text((now_ns() - state.newest.taken_at_ns) / 1e9)} ago"
        if state.newest.partial:
            newest += ", partial"
    job = state.last_job
    return [
        state.source.name if state.source.protected else f"{state.source.name} (ended)",
        state.source.server,
        state.source.group,
        str(state.points),
        newest,
        size_text(state.bytes or (state.newest.totals.bytes if state.newest else 0)),
        size_text(state.stored_bytes),
        f"{job.verb.replace('_', ' ')} {job.state}" if job is not None else "-",
    ]
