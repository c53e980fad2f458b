"""`strandline store attach`: a replica that was brought here, made known so that it restores."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from strandline_console.documents import source_document
from strandline_console.errors import WrongUse
from strandline_console.local_store import ToolFailed, local_store, run_tool
from strandline_console.outcome import print_document, say
from strandline_console.protecting import NameTaken, change_assignment, tell_changed
from strandline_console.site import Site
from strandline_contracts.names import label, token
from strandline_contracts.policy import NameEntry, Source, name_key


async def attach_replica(
    site: Site,
    folder: Path,
    *,
    name: str,
    server: str,
    store: str,
    move: bool,
    as_json: bool,
) -> int:
    """Bring a replica's folder into a store of this machine, and its source into the policies.

    A repeated command finishes what an interrupted one has begun. Raises NoSuchThing, NotLocal,
    NameTaken, ToolFailed, BusError.
    """
    store, root = local_store(site.settings.state_dir, store)
    found = await asyncio.to_thread(run_tool, "store.attach", "look", root, folder)
    known = next((one for one in await site.sources() if one.id == found["source"]), None)
    if known is not None and found["here"]:
        raise ToolFailed(
            f"{folder} is the replica of {known.name!r} already", code="store.already_here"
        )
    if known is not None and name not in ("", known.name):
        raise WrongUse(f"its data source is known here as {known.name!r}", hint="Leave out --name.")
    source = (
        msgspec.structs.replace(known, store=store)
        if known is not None
        else _source(found, name=name, server=server, store=store)
    )
    await _check_name(site, source)
    if not found["here"]:
        say(f"{'moving' if move else 'copying'} {folder} and making its index")
        await asyncio.to_thread(run_tool, "store.attach", "move" if move else "copy", root, folder)
    await _make_known(site, source)
    return _tell(source, found, as_json=as_json)


def _source(found: dict[str, Any], *, name: str, server: str, store: str) -> Source:
    """Return the data source of a replica from elsewhere: one that is no longer protected."""
    fields = {
        "id": found["source"],
        "name": label(name or found["name"]),
        "type": found["type"],
        "server": token(server or found["server"]),
        "store": store,
        "protected": False,
    }
    try:
        return msgspec.convert(fields, Source)
    except msgspec.ValidationError as error:
        raise ToolFailed(
            f"this version does not know data sources of type {found['type']!r}: {error}",
            code="store.not_a_replica",
        ) from error


async def _check_name(site: Site, source: Source) -> None:
    """Raise NameTaken when another data source of the site has the name."""
    entry, _ = await site.policy(name_key(source.name), NameEntry)
    if entry is not None and entry.source != source.id:
        raise NameTaken(
            f"{source.name!r} is another data source here, of server {entry.server}",
            hint="Choose another name with --name.",
        )


async def _make_known(site: Site, source: Source) -> None:
    """Write the name and the source, which is from then on found by every command."""
    entry = NameEntry(name=source.name, source=source.id, server=source.server, store=source.store)

    def named(found: NameEntry | None) -> NameEntry:
        if found is not None and found.source != source.id:
            raise NameTaken(
                f"{source.name!r} was given to another data source meanwhile",
                hint="Run this again with --name.",
            )
        return entry

    def with_source(sources: list[Source]) -> list[Source]:
        return [one for one in sources if one.id != source.id] + [source]

    await site.change_policy(name_key(source.name), NameEntry, named)
    await change_assignment(site, source.server, with_source)
    await tell_changed(site, source)


def _tell(source: Source, found: dict[str, Any], *, as_json: bool) -> int:
    if as_json:
        print_document({"attached": source_document(source), "newest": found["newest"]})
        return 0
    print(f"{source.name} of {source.server} is here, up to recovery point {found['newest']}")
    print(f"  strandline restore {source.name} --to DIR --server SERVER --wait")
    print("No rule drops anything of it while it is not protected here.")
    return 0
