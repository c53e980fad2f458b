"""Commands a restore: the grant to read one recovery point, and the command to its target."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from strandline_console.commanding import QUEUED_FOR_S, Sent, send
from strandline_console.documents import bytes_document
from strandline_console.errors import WrongUse
from strandline_console.moment import parse_at
from strandline_console.outcome import say
from strandline_console.points import find_point
from strandline_console.reading import resolve
from strandline_console.site import Site, now_ns
from strandline_console.text import path_text
from strandline_contracts.commands import Grant, Restore
from strandline_contracts.names import caller, new_job_id

RUNS_FOR_S = 7 * 24 * 3600
"""How long after the latest start a restore may read: large ones take days."""


async def send_restore(
    site: Site,
    name: str,
    *,
    at: str,
    paths: Sequence[str],
    to: str,
    server: str,
    overwrite: bool,
    devices: bool,
) -> tuple[Sent, dict[str, Any]]:
    """Send the restore of a recovery point to the agent of `server` (default: the source's own).

    Returns the command and what it is, for the JSON document. Raises NoSuchThing, WrongUse.
    """
    wanted = parse_at(at)
    source = await site.source(name)
    target = await site.known_server(server) if server else source.server
    folder = _absolute(to, here=site.is_here(target))
    point = await find_point(site, source, wanted)
    if point.partial:
        say(f"recovery point {point.number} is partial: it lacks what could not be read then")
    inner = [(await resolve(site, source, point, os.fsencode(path)))[0] for path in paths]
    job = new_job_id()
    grant = Grant(
        site=site.bus.site,
        store=source.store,
        source=source.id,
        point=point.number,
        grantee=caller("agent", target),
        job=job,
        not_after_ns=now_ns() + (QUEUED_FOR_S + RUNS_FOR_S) * 1_000_000_000,
        paths=inner,
    )
    args = Restore(
        point=point.number,
        to=folder,
        grant=site.signed(grant, "grant"),
        store=source.store,
        paths=inner,
        overwrite=overwrite,
        devices=devices,
    )
    sent = await send(site, "agent", target, source.id, args, job=job)
    return sent, {"server": target, "to": bytes_document(folder), "point": point.number}


def _absolute(to: str, *, here: bool) -> bytes:
    raw = os.fsencode(to)
    if raw.startswith(b"/"):
        return os.path.normpath(raw)
    if not here:
        raise WrongUse(
            f"--to {path_text(raw)} is relative, and the server is another one",
            hint="Name a folder of another server from the root on.",
        )
    return os.path.abspath(raw)
