"""The JSON forms of what commands print; docs/cli.md describes them. Pure.

Times are ISO 8601 in UTC. Names and paths, which are bytes, come twice: printable as text, and
exact in base64.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

import msgspec

from strandline_console.text import path_text
from strandline_contracts.events import Event
from strandline_contracts.jobs import Job
from strandline_contracts.points import Inode, Issue, RecoveryPoint, Totals
from strandline_contracts.policy import Source
from strandline_contracts.queries import StatusIs


def time_document(time_ns: int) -> str | None:
    if not time_ns:
        return None
    moment = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ns % 1_000_000_000:09d}Z"


def bytes_document(value: bytes) -> dict[str, str]:
    return {"text": path_text(value), "base64": base64.b64encode(value).decode()}


def totals_document(totals: Totals) -> dict[str, int]:
    return {name: getattr(totals, name) for name in totals.__struct_fields__}


def issue_document(issue: Issue) -> dict[str, Any]:
    return {"path": bytes_document(issue.path), "code": issue.code, "text": issue.text}


def point_document(point: RecoveryPoint) -> dict[str, Any]:
    return {
        "number": point.number,
        "taken_at": time_document(point.taken_at_ns),
        "received_at": time_document(point.received_at_ns),
        "kind": point.kind,
        "consistency": point.consistency,
        "provider": point.provider,
        "tracker": point.tracker,
        "server": point.server,
        "partial": point.partial,
        "job": point.job,
        "parent": point.parent,
        "digest": point.digest.hex(),
        "totals": totals_document(point.totals),
        "stored_bytes": point.stored_bytes,
    }


def job_document(job: Job) -> dict[str, Any]:
    return {
        "job": job.job,
        "source": job.source,
        "verb": job.verb,
        "target": f"{job.role}-{job.instance}",
        "state": job.state,
        "attempt": job.attempt,
        "scheduled_at": time_document(job.scheduled_at_ns),
        "accepted_at": time_document(job.accepted_at_ns),
        "updated_at": time_document(job.updated_at_ns),
        "not_after": time_document(job.not_after_ns),
        "issued_by": job.issued_by,
        "point": job.point or None,
        "partial": job.partial,
        "totals": totals_document(job.totals),
        "issues": [issue_document(issue) for issue in job.issues],
        "failure": msgspec.structs.asdict(job.failure) if job.failure is not None else None,
        "detail": job.detail,
    }


def source_document(source: Source) -> dict[str, Any]:
    return {
        "id": source.id,
        "name": source.name,
        "type": source.type,
        "server": source.server,
        "store": source.store,
        "group": source.group,
        "paths": [bytes_document(path) for path in source.paths],
        "excludes": source.excludes,
        "protected": source.protected,
    }


def inode_document(name: bytes, inode: Inode) -> dict[str, Any]:
    return {
        "name": bytes_document(name),
        "type": inode.type,
        "mode": f"{inode.mode & 0o7777:04o}",
        "uid": inode.uid,
        "gid": inode.gid,
        "size": inode.size,
        "mtime": time_document(inode.mtime_ns),
        "target": bytes_document(inode.target) if inode.type == "l" else None,
        "xattrs": [bytes_document(key) for key, _ in inode.xattrs],
        "changing": inode.changing,
    }


def status_document(status: StatusIs) -> dict[str, Any]:
    return {
        "role": status.role,
        "instance": status.instance,
        "ready": status.ready,
        "version": status.version,
        "started_at": time_document(status.started_at_ns),
        "detail": status.detail,
    }


def event_document(event: Event) -> dict[str, Any]:
    data = msgspec.to_builtins(event.data, builtin_types=(bytes,))
    return {
        "id": event.id,
        "time": time_document(event.time_ns),
        "origin": event.origin,
        "noun": event.noun,
        "verb": event.verb,
        "source": event.source,
        "number": event.number,
        "data": _plain(data),
    }


def _plain(value: Any) -> Any:
    """Return `value` with its bytes as documents, so that JSON can hold it."""
    if isinstance(value, bytes):
        return bytes_document(value)
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
