"""Protects data sources and ends their protection: the policy documents, written with care.

The order makes a repeated command finish what an interrupted one has begun: first the name, then
the group, then the assignment, which alone puts the source into force.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from strandline_console.commanding import Sent, send, send_assign
from strandline_console.errors import ConsoleError, WrongUse
from strandline_console.outcome import say
from strandline_console.site import Site, now_ns
from strandline_console.text import path_text
from strandline_contracts.codec import encode
from strandline_contracts.commands import ExpressFull
from strandline_contracts.events import Event, SourceChanged, accept_event
from strandline_contracts.names import label, new_source_id
from strandline_contracts.policy import (
    MAX_SOURCES_PER_SERVER,
    Assignment,
    Group,
    NameEntry,
    Source,
    group_key,
    name_key,
    server_key,
)
from strandline_contracts.subjects import EVENTS

DEFAULT_EXPRESS_FULL = "0 20 * * *"


class NameTaken(ConsoleError):
    """Another data source has this name."""

    code = "console.name_taken"


async def protect(
    site: Site,
    paths: Sequence[str],
    *,
    name: str,
    excludes: Sequence[str],
    group: str,
    server: str,
) -> tuple[Source, Sent]:
    """Put a data source under protection and command its first replica.

    Raises WrongUse, NameTaken, BusError.
    """
    label(name)
    label(group)
    server = server or site.here()
    await _check_server(site, server)
    absolute = [absolute_path(path, here=site.is_here(server)) for path in paths]
    if site.is_here(server):
        _check_own_state(site, absolute)
    entry = await _take_name(site, name, server)
    await _make_group(site, group)
    source = Source(
        id=entry.source,
        name=name,
        type="files",
        server=server,
        store=entry.store,
        group=group,
        paths=absolute,
        excludes=list(excludes),
    )
    await change_assignment(site, server, lambda sources: _with(sources, source))
    await tell_changed(site, source)
    await send_assign(site, server)
    return source, await send(site, "agent", server, source.id, ExpressFull())


async def unprotect(site: Site, name: str) -> Source:
    """End the protection of a data source; its replica and its name stay."""
    source = await site.source(name)
    if not source.protected:
        return source
    ended = msgspec.structs.replace(source, protected=False)
    await change_assignment(site, source.server, lambda sources: _with(sources, ended))
    await tell_changed(site, ended)
    await send_assign(site, source.server)
    return ended


async def change_assignment(
    site: Site, server: str, change: Callable[[list[Source]], list[Source]]
) -> None:
    """Write what `change` makes of the server's sources, again if somebody else was quicker."""

    def changed(found: Assignment | None) -> Assignment:
        sources = change(list(found.sources) if found is not None else [])
        if len(sources) > MAX_SOURCES_PER_SERVER:
            raise ConsoleError(
                f"{server} would have more than {MAX_SOURCES_PER_SERVER} data sources",
                hint="Protect several paths as one data source.",
            )
        number = found.revision + 1 if found is not None else 1
        return Assignment(server=server, revision=number, sources=sources)

    await site.change_policy(server_key(server), Assignment, changed)


async def tell_changed(site: Site, source: Source) -> None:
    """Publish that the source's protection has changed, under the next number of this origin."""
    bus = site.bus
    told = f"{bus.subjects.root}.evt.{bus.me}.source.*.{source.id}"
    number = 1
    async for stored in bus.snapshot(EVENTS, told):
        number = max(number, accept_event(stored.data, stored.subject).number + 1)
    event = Event(
        id=f"{bus.me}-{source.id}-{number}-{now_ns()}",
        site=bus.site,
        origin=bus.me,
        noun="source",
        verb="protected" if source.protected else "unprotected",
        source=source.id,
        number=number,
        time_ns=now_ns(),
        data=SourceChanged(source=source),
    )
    await bus.publish(event.subject(), encode(event), headers=event.headers())


async def _check_server(site: Site, server: str) -> None:
    if not site.is_here(server):
        await site.known_server(server)


async def _take_name(site: Site, name: str, server: str) -> NameEntry:
    """Return the entry of `name`: a new one, or that of the source which had it here before."""
    fresh = NameEntry(
        name=name, source=new_source_id(), server=server, store=site.settings.stores[0]
    )
    found, revision = await site.policy(name_key(name), NameEntry)
    if found is None:
        if await site.try_policy(name_key(name), fresh, revision):
            return fresh
        found, revision = await site.policy(name_key(name), NameEntry)
    if found is None:
        raise ConsoleError(f"the name {name!r} was changed by others meanwhile", hint="Try again.")
    if found.server != server:
        raise NameTaken(
            f"{name!r} is a data source of server {found.server}",
            hint="Choose another name.",
        )
    assignment, _ = await site.policy(server_key(server), Assignment)
    for source in assignment.sources if assignment is not None else []:
        if source.id == found.source and source.protected:
            raise NameTaken(
                f"{name!r} is protected already: {', '.join(map(path_text, source.paths))}",
                hint=f"Choose another name, or `strandline unprotect {name}` first.",
            )
    return found


async def _make_group(site: Site, group: str) -> None:
    """Make the group with the default policy if there is none of this name."""
    found, revision = await site.policy(group_key(group), Group)
    if found is None:
        document = Group(name=group, express_full=[DEFAULT_EXPRESS_FULL], timezone=local_zone())
        await site.try_policy(group_key(group), document, revision)


def _with(sources: list[Source], changed: Source) -> list[Source]:
    return [source for source in sources if source.id != changed.id] + [changed]


def absolute_path(path: str, *, here: bool) -> bytes:
    """Return the absolute path as bytes; of this host's paths each must exist."""
    raw = os.fsencode(path)
    if not here:
        if not raw.startswith(b"/"):
            raise WrongUse(
                f"{path_text(raw)} is relative, and the server is another one",
                hint="Name the paths of another server from the root on.",
            )
        return os.path.normpath(raw)
    absolute = os.path.abspath(raw)
    if os.path.islink(absolute):
        target = os.path.realpath(absolute)
        raise WrongUse(
            f"{path_text(absolute)} is a link to {path_text(target)}: only the link would be kept",
            hint=f"Protect what it leads to: strandline protect {path_text(target)}",
        )
    try:
        mode = os.stat(absolute).st_mode
    except OSError as error:
        raise WrongUse(
            f"{path_text(absolute)} cannot be protected: {error.strerror}",
            hint="Name folders or files that exist.",
        ) from error
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise WrongUse(f"{path_text(absolute)} is neither a folder nor a file")
    return absolute


def _check_own_state(site: Site, paths: Sequence[bytes]) -> None:
    """Refuse the stack's own state; below a path it is left out by the agent, and that is told."""
    state = os.fsencode(site.settings.state_dir)
    for path in paths:
        if (path + b"/").startswith(state + b"/"):
            raise WrongUse(
                f"{path_text(path)} belongs to the stack's own state folder",
                hint="It holds the replicas themselves.",
            )
        if state.startswith(path.rstrip(b"/") + b"/"):
            say(f"left out: {path_text(state)} (the stack's own state folder)")


def local_zone() -> str:
    """Return the machine's time zone by its IANA name, UTC if it has none."""
    zone = os.environ.get("TZ", "").lstrip(":")
    if not zone:
        target = os.path.realpath("/etc/localtime")
        zone = target.partition("/zoneinfo/")[2]
    try:
        return ZoneInfo(zone).key if zone else "UTC"
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return "UTC"
