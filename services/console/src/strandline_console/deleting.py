"""Deletes recovery points and replicas, and takes that back: commands to the store.

A store lets nothing go before its own delay has passed, which no message can change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from strandline_console.commanding import ending, send, wait_for_end
from strandline_console.documents import job_document
from strandline_console.fate import Fate
from strandline_console.outcome import print_document
from strandline_console.replicas import known_replica
from strandline_console.site import Site
from strandline_console.text import time_text
from strandline_contracts.commands import Delete, Undelete
from strandline_contracts.policy import Source


async def delete(
    site: Site, source: Source, points: Sequence[int], *, as_json: bool, extra: dict[str, Any]
) -> int:
    """Delete recovery points, or (none named) the replica; tell until when it can be undone."""
    code, document = await _command(site, source, Delete(points=sorted(set(points))), as_json)
    fate = Fate.of_replica([], await known_replica(site, source))
    if as_json:
        print_document({**extra, **document, **fate.deleted_document()})
    else:
        delay = "until the store's own delay has passed"
        until = f"until {time_text(fate.due_at_ns)}" if fate.deleted else delay
        print(f"It can be taken back {until}:")
        print(f"  strandline undelete {source.name}" + _options(points))
    return code


async def undelete(site: Site, source: Source, points: Sequence[int], *, as_json: bool) -> int:
    """Take back deletes of recovery points, or (none named) all of them and the replica's."""
    code, document = await _command(site, source, Undelete(points=sorted(set(points))), as_json)
    if as_json:
        fate = Fate.of_replica([], await known_replica(site, source))
        print_document({**document, **fate.deleted_document()})
    elif not source.protected:
        print(f"{source.name} is not protected: strandline protect PATH --name {source.name}")
    return code


async def _command(
    site: Site, source: Source, args: Delete | Undelete, as_json: bool
) -> tuple[int, dict[str, Any]]:
    """Send the command, wait for the store's word, and tell how it ended."""
    sent = await send(site, "store", source.store, source.id, args)
    job = await wait_for_end(site, sent)
    code = ending(job, source.name, as_json=as_json)
    return code, {"name": source.name, **job_document(job)}


def _options(points: Sequence[int]) -> str:
    return "".join(f" --point {number}" for number in points)
