"""The commands of `strandline store`: replicas as their stores know them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from strandline_console.arguments import Json, Name, State, Wait, run
from strandline_console.attaching import attach_replica
from strandline_console.commanding import finish, send
from strandline_console.site import Site
from strandline_console.storing import show_clock, show_replicas
from strandline_contracts.commands import Compact, Reindex

store = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""\b
    Look after the stores and their replicas.

    \b
    Examples:
      strandline store list
      strandline store attach /mnt/disk/replicas/00112233445566aa
    """,
)
Store = Annotated[str, typer.Option("--store", metavar="STORE", help="Which (default: the first).")]


@store.command("list")
def list_(state: State = "", as_json: Json = False) -> None:
    """List the replicas of every store: size, damage, when they were verified.

    \b
    Example:
      strandline store list
    """

    async def work(site: Site) -> int:
        return await show_replicas(site, as_json=as_json)

    run(state, work)


@store.command()
def reindex(name: Name, wait: Wait = False, state: State = "", as_json: Json = False) -> None:
    """Make a replica's index anew from manifests and segments.

    \b
    Example:
      strandline store reindex data --wait
    """
    _command(name, Reindex(), state, wait=wait, as_json=as_json)


@store.command()
def compact(name: Name, wait: Wait = False, state: State = "", as_json: Json = False) -> None:
    """Drop what retention lets go, and free its space now.

    \b
    Example:
      strandline store compact data --wait
    """
    _command(name, Compact(), state, wait=wait, as_json=as_json)


@store.command()
def clock(
    accept: Annotated[
        bool, typer.Option("--accept", help="The clock is right: let lives end again.")
    ] = False,
    store: Store = "",
    state: State = "",
    as_json: Json = False,
) -> None:
    """Show whether this machine's store believes its clock.

    While it does not, nothing is dropped.

    \b
    Examples:
      strandline store clock
      strandline store clock --accept
    """
    raise typer.Exit(show_clock(state, store, accept=accept, as_json=as_json))


@store.command()
def attach(
    *,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a replica.")],
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="What to call it (default: as before).")
    ] = "",
    server: Annotated[
        str, typer.Option("--server", metavar="SERVER", help="Whose it is (default: as before).")
    ] = "",
    move: Annotated[
        bool, typer.Option("--move", help="Move the folder rather than copy it.")
    ] = False,
    store: Store = "",
    state: State = "",
    as_json: Json = False,
) -> None:
    """Take in a replica's folder that was brought here.

    What it holds can be restored at once, by any server of this stack. It is
    not protected: no rule drops anything of it.

    \b
    Examples:
      strandline store attach /mnt/disk/replicas/00112233445566aa
      strandline store attach /mnt/disk/replicas/00112233445566aa --name old-shop --move
    """

    async def work(site: Site) -> int:
        return await attach_replica(
            site, folder, name=name, server=server, store=store, move=move, as_json=as_json
        )

    run(state, work)


def _command(name: str, args: Reindex | Compact, state: str, *, wait: bool, as_json: bool) -> None:
    async def work(site: Site) -> int:
        source = await site.source(name)
        sent = await send(site, "store", source.store, source.id, args)
        return await finish(site, sent, name, wait=wait, as_json=as_json, extra={})

    run(state, work)
