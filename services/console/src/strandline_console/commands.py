"""The commands that protect, show and restore."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from strandline_console.arguments import Json, Name, State, Wait, run
from strandline_console.browsing import show_folder
from strandline_console.commanding import finish, run_now
from strandline_console.documents import source_document
from strandline_console.following import show_events, show_jobs
from strandline_console.outcome import say
from strandline_console.points import show_points
from strandline_console.protecting import protect as protect_source
from strandline_console.restoring import send_restore
from strandline_console.site import Site
from strandline_console.site_status import show_status

Follow = Annotated[bool, typer.Option("--follow", help="Go on with what comes.")]
At = Annotated[
    str,
    typer.Option(
        "--at",
        metavar="POINT_OR_TIME",
        help="A number from `points`, or ISO 8601 (default: the newest).",
    ),
]


def status(state: State = "", as_json: Json = False) -> None:
    """Show services and data sources; exit 0 only if all are ready.

    \b
    Example:
      strandline status
    """

    async def work(site: Site) -> int:
        return await show_status(site, as_json=as_json)

    run(state, work)


def protect(
    *,
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Folders or files.")],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="What to call it.")],
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="PATTERN", help="A line as in .gitignore; repeatable."),
    ] = None,
    group: Annotated[
        str, typer.Option("--group", metavar="GROUP", help="Protection group.")
    ] = "default",
    server: Annotated[
        str, typer.Option("--server", metavar="SERVER", help="Whose paths (default: this host).")
    ] = "",
    wait: Wait = False,
    state: State = "",
    as_json: Json = False,
) -> None:
    """Protect folders or files as one data source.

    Its first replica is made at once.

    \b
    Examples:
      strandline protect /srv/data --name data --wait
      strandline protect /etc /home --name host --exclude '*.tmp' --exclude '/cache/'
    """

    async def work(site: Site) -> int:
        source, sent = await protect_source(
            site, paths, name=name, excludes=exclude or [], group=group, server=server
        )
        if not as_json:
            print(f"{name} of {source.server} is protected (group {group})")
        extra = {"protected": source_document(source)}
        return await finish(site, sent, name, wait=wait, as_json=as_json, extra=extra)

    run(state, work)


def _run_now(verb: str, name: str, state: str, *, wait: bool, as_json: bool) -> None:
    async def work(site: Site) -> int:
        sent = await run_now(site, await site.source(name), verb)
        return await finish(site, sent, name, wait=wait, as_json=as_json, extra={})

    run(state, work)


def express_full(name: Name, wait: Wait = False, state: State = "", as_json: Json = False) -> None:
    """Ship what changed and make a recovery point now.

    \b
    Example:
      strandline express-full data --wait
    """
    _run_now("express_full", name, state, wait=wait, as_json=as_json)


def sync(name: Name, wait: Wait = False, state: State = "", as_json: Json = False) -> None:
    """Ship the logs now; for files this is an express full.

    \b
    Example:
      strandline sync data --wait
    """
    _run_now("sync", name, state, wait=wait, as_json=as_json)


def check(name: Name, wait: Wait = False, state: State = "", as_json: Json = False) -> None:
    """Compare source and replica by digest, and repair.

    All of the source is read; what differs is shipped.

    \b
    Example:
      strandline check data --wait
    """
    _run_now("check", name, state, wait=wait, as_json=as_json)


def verify(name: Name, wait: Wait = False, state: State = "", as_json: Json = False) -> None:
    """Read again and check all that the store holds of it.

    \b
    Example:
      strandline verify data --wait
    """
    _run_now("verify", name, state, wait=wait, as_json=as_json)


def points(
    *,
    name: Name,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="How many.")] = 100,
    before: Annotated[
        int, typer.Option("--before", metavar="POINT", min=0, help="Only those below POINT.")
    ] = 0,
    state: State = "",
    as_json: Json = False,
) -> None:
    """List the recovery points of a data source, newest first.

    \b
    Examples:
      strandline points data
      strandline points data --before 300 --json
    """

    async def work(site: Site) -> int:
        return await show_points(site, name, limit, before, as_json=as_json)

    run(state, work)


def browse(
    *,
    name: Name,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A path of its tree.")] = "",
    at: At = "",
    state: State = "",
    as_json: Json = False,
) -> None:
    """Show a folder of a recovery point as `ls -l` does.

    \b
    Examples:
      strandline browse data
      strandline browse data docs/2026 --at 2026-01-31T18:30
    """

    async def work(site: Site) -> int:
        return await show_folder(site, name, os.fsencode(path), at, as_json=as_json)

    run(state, work)


def jobs(
    *,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Only of this source.")] = "",
    follow: Follow = False,
    only_open: Annotated[bool, typer.Option("--open", help="Only those not ended.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=500, help="How many.")] = 50,
    state: State = "",
    as_json: Json = False,
) -> None:
    """List jobs, newest first.

    With --follow each change of a job as it comes.

    \b
    Examples:
      strandline jobs --open
      strandline jobs data --follow
    """

    async def work(site: Site) -> int:
        return await show_jobs(
            site, name, limit, open_only=only_open, follow=follow, as_json=as_json
        )

    run(state, work)


def events(
    *,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Only of this source.")] = "",
    follow: Follow = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many.")] = 50,
    state: State = "",
    as_json: Json = False,
) -> None:
    """Show the newest events of the public record.

    With --follow also what comes.

    \b
    Examples:
      strandline events
      strandline events --follow --json
    """

    async def work(site: Site) -> int:
        return await show_events(site, name, limit, follow=follow, as_json=as_json)

    run(state, work)


def restore(
    *,
    name: Name,
    to: Annotated[str, typer.Option("--to", metavar="DIR", help="The folder to restore into.")],
    at: At = "",
    path: Annotated[
        list[str] | None,
        typer.Option("--path", metavar="PATH", help="Only this path of the tree; repeatable."),
    ] = None,
    server: Annotated[
        str, typer.Option("--server", metavar="SERVER", help="Onto this server (default: its own).")
    ] = "",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also into a folder that is not empty.")
    ] = False,
    devices: Annotated[bool, typer.Option("--devices", help="Also make device nodes.")] = False,
    wait: Wait = False,
    state: State = "",
    as_json: Json = False,
) -> None:
    """Restore a recovery point, whole or by paths, into a folder.

    \b
    Examples:
      strandline restore data --to /srv/data-again --wait
      strandline restore data --at 17 --path docs/letter.odt --to /tmp/back --wait
      strandline restore data --at '2026-01-31 18:30' --to /srv/data --overwrite
    """

    async def work(site: Site) -> int:
        sent, extra = await send_restore(
            site,
            name,
            at=at,
            paths=path or [],
            to=to,
            server=server,
            overwrite=overwrite,
            devices=devices,
            wait=wait,
        )
        if not wait and not as_json:
            say("it runs on its own: strandline jobs --follow")
        return await finish(site, sent, name, wait=wait, as_json=as_json, extra=extra)

    run(state, work)
