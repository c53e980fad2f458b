"""Looks into a recovery point: `browse`, as `ls -l` shows a folder."""

from __future__ import annotations

from collections.abc import Sequence

from strandline_console.documents import bytes_document, inode_document
from strandline_console.errors import ConsoleError, NoSuchThing
from strandline_console.moment import parse_at
from strandline_console.nearest import nearest
from strandline_console.outcome import print_document, say
from strandline_console.points import find_point
from strandline_console.site import Site
from strandline_console.text import mode_text, path_text, size_text, table, time_text
from strandline_contracts.points import ROOT, Inode, RecoveryPoint
from strandline_contracts.policy import Source
from strandline_contracts.reading import List, Listing, Resolve, Resolved

MAX_ENTRIES = 200_000


async def show_folder(site: Site, name: str, path: bytes, at: str, *, as_json: bool) -> int:
    """Print what lies at `path` in a recovery point. Raises NoSuchThing."""
    wanted = parse_at(at)
    source = await site.source(name)
    point = await find_point(site, source, wanted)
    inner, inode = await resolve(site, source, point, path)
    if inode.type == "d":
        entries = await list_folder(site, source, point, inode.file)
    else:
        entries = [(inner.rsplit(b"/", 1)[-1], inode)]
    if as_json:
        print_document(
            {
                "name": name,
                "point": point.number,
                "path": bytes_document(b"/" + inner),
                "entries": [inode_document(entry, found) for entry, found in entries],
            }
        )
        return 0
    say(f"{name}, recovery point {point.number}, taken {time_text(point.taken_at_ns)}")
    rows = [_row(entry, found) for entry, found in entries]
    if rows:
        lines = table(["MODE", "OWNER", "SIZE", "CHANGED", "NAME"], rows, right="SIZE")
        print(lines.partition("\n")[2])
    return 0


def clean_path(path: bytes) -> bytes:
    """Return `path` as the store speaks of it: names between slashes, from the tree's root."""
    return b"/".join(part for part in path.split(b"/") if part not in (b"", b"."))


def readings(path: bytes, protected: Sequence[bytes]) -> list[bytes]:
    """Return what `path` can mean in the tree of a source: from its root, or from the server's.

    The tree of a single protected folder begins in it, so `/srv/data/a` may be its `a`.
    """
    inner = clean_path(path)
    found = [inner]
    for folder in protected if path.startswith(b"/") else []:
        base = clean_path(folder)
        if (inner + b"/").startswith(base + b"/") and base:
            found.append(inner[len(base) + 1 :])
    return found


async def resolve(
    site: Site, source: Source, point: RecoveryPoint, path: bytes
) -> tuple[bytes, Inode]:
    """Return the file that `path` means in a recovery point, and its path from the tree's root.

    Raises NoSuchThing with names like it.
    """
    meant = readings(path, source.paths)
    for inner, inode in zip(meant, await _inodes(site, source, point, meant), strict=True):
        if inode is not None:
            return inner, inode
    raise NoSuchThing(
        f"recovery point {point.number} of {source.name!r} has no {path_text(path)}",
        nearest=await _nearest(site, source, point, meant[-1]),
        hint=f"strandline browse {source.name} shows what it has.",
    )


async def _inodes(
    site: Site, source: Source, point: RecoveryPoint, paths: list[bytes]
) -> list[Inode | None]:
    question = Resolve(source=source.id, point=point.number, paths=paths)
    answer = await site.ask_store(source.store, "resolve", question, Resolved)
    return answer.inodes


async def _nearest(site: Site, source: Source, point: RecoveryPoint, path: bytes) -> list[str]:
    """Return names like the last one of `path` in its folder, if that is there."""
    folder, _, last = path.rpartition(b"/")
    (parent,) = await _inodes(site, source, point, [folder])
    if parent is None or parent.type != "d":
        return []
    entries = await list_folder(site, source, point, parent.file)
    prefix = path_text(b"/" + folder + b"/") if folder else "/"
    names = [path_text(name) for name, _ in entries]
    return [prefix + name for name in nearest(path_text(last), names)]


async def list_folder(
    site: Site, source: Source, point: RecoveryPoint, folder: int = ROOT
) -> list[tuple[bytes, Inode]]:
    """Return the entries of a folder by name."""
    found: list[tuple[bytes, Inode]] = []
    while True:
        after = found[-1][0] if found else b""
        question = List(source=source.id, point=point.number, folders=[folder], after=after)
        page = await site.ask_store(source.store, "list", question, Listing)
        found += [(name.name, inode) for name, inode in zip(page.names, page.inodes, strict=True)]
        if page.done or not page.names:
            return found
        if len(found) > MAX_ENTRIES:
            raise ConsoleError(f"the folder has more than {MAX_ENTRIES} entries")


def _row(name: bytes, inode: Inode) -> list[str]:
    shown = path_text(name)
    if inode.type == "l":
        shown += f" -> {path_text(inode.target)}"
    elif inode.type == "d":
        shown += "/"
    size = size_text(inode.size) if inode.type == "f" else "-"
    owner = f"{inode.uid}:{inode.gid}"
    return [mode_text(inode.type, inode.mode), owner, size, time_text(inode.mtime_ns), shown]
