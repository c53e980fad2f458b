"""Commands a restore: the grant to read one recovery point, and the command to its target."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from strandline_console.browsing import resolve
from strandline_console.commanding import QUEUED_FOR_S, Sent, send
from strandline_console.documents import bytes_document
from strandline_console.errors import ConsoleError, WrongUse
from strandline_console.moment import parse_at
from strandline_console.outcome import say
from strandline_console.points import find_point
from strandline_console.site import Site, now_ns
from strandline_console.text import path_text
from strandline_contracts.commands import Grant, Restore
from strandline_contracts.jobs import GetJob, GotJob
from strandline_contracts.names import caller, new_job_id
from strandline_contracts.queries import Status, StatusIs
from strandline_runtime.errors import RemoteRefused, Unreachable

RUNS_FOR_S = 7 * 24 * 3600
"""How long after the latest start a restore may read: large ones take days."""
TAKEN_WITHIN_S = 10.0
ASK_TAKEN_EVERY_S = 0.05


class NotTaken(ConsoleError):
    """The target of a restore has not taken it."""

    code = "console.not_taken"
    retryable = True


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
    wait: bool,
) -> tuple[Sent, dict[str, Any]]:
    """Send the restore of a recovery point to the agent of `server` (default: the source's own).

    Returns the command and what it is, for the JSON document. Without `wait` only when that agent
    has taken it. Raises NoSuchThing, WrongUse, NotTaken.
    """
    wanted = parse_at(at)
    source = await site.source(name)
    target = await site.known_server(server) if server else source.server
    folder = _absolute(to, here=site.is_here(target))
    point = await find_point(site, source, wanted)
    if point.partial:
        say(f"recovery point {point.number} is partial: it lacks what could not be read then")
    inner = [(await resolve(site, source, point, os.fsencode(path)))[0] for path in paths]
    if not wait:
        await _check_answers(site, target)
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
    if not wait:
        await _until_taken(site, sent)
    return sent, {"server": target, "to": bytes_document(folder), "point": point.number}


async def _check_answers(site: Site, server: str) -> None:
    """Raise NotTaken unless the agent is there.

    One that comes back looks only for commands about its own sources, and finds only the last.
    """
    try:
        await site.bus.call("agent", server, "status", Status(), StatusIs, timeout_s=3.0)
    except (Unreachable, RemoteRefused) as error:
        raise NotTaken(
            f"the agent of {server} does not answer: nothing was sent",
            hint="With --wait the command stays until that agent is back.",
        ) from error


async def _until_taken(site: Site, sent: Sent) -> None:
    until_s = time.monotonic() + TAKEN_WITHIN_S
    while time.monotonic() < until_s:
        with suppress(Unreachable, RemoteRefused):
            answer = await site.bus.call(
                "agent", sent.command.instance, "job", GetJob(job=sent.job), GotJob, timeout_s=3.0
            )
            if answer.job is not None:
                return
        await asyncio.sleep(ASK_TAKEN_EVERY_S)
    raise NotTaken(
        f"the agent of {sent.command.instance} has not confirmed job {sent.job}",
        hint="strandline jobs shows whether it has begun; if not, restore again, with --wait.",
    )


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
