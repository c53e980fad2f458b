"""The plan of a restore: the tree to make and how far it is made, in a file of its own (SQLite).

It is made before anything is written, so that a tree that cannot be one is refused as a whole, and
kept until the job ends, so that a restore goes on where it was when its process is killed.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from strandline_agent.errors import HostileReplica
from strandline_agent.restore_rules import check_entry, check_inode
from strandline_agent.store_view import FIRST, StoreView
from strandline_contracts.points import ROOT, Inode, Issue, Name

Phase = Literal["new", "plan", "make", "data", "finish"]

FOLDERS_PER_LIST = 256
ROWS_PER_READ = 1000
PLANNED_ROOT = -1
"""The folder `to` where only some paths are restored; folders made for these have lower ids."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS node (file INTEGER PRIMARY KEY, parent INTEGER, name BLOB,
    depth INTEGER, type TEXT, size INTEGER, listed INTEGER, skip INTEGER, inode BLOB,
    UNIQUE (parent, name));
CREATE INDEX IF NOT EXISTS node_by_depth ON node (depth) WHERE type = 'd';
CREATE INDEX IF NOT EXISTS unlisted ON node (file) WHERE listed = 0;
CREATE TABLE IF NOT EXISTS issue (path BLOB, code TEXT, text TEXT,
    PRIMARY KEY (path, code, text)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS link (parent INTEGER, name BLOB, file INTEGER,
    PRIMARY KEY (parent, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS link_by_file ON link (file);
"""
_COLUMNS = "file, parent, name, depth, type, size, skip, inode"
_INODE = msgspec.msgpack.Decoder(Inode)


class Node(NamedTuple):
    """A file of the plan; `inode` None for a folder that is only on the way to others."""

    file: int
    parent: int
    name: bytes
    depth: int
    type: str
    size: int
    skip: int
    inode: Inode | None


class RestorePlan:
    """The plan of one job. Safe for threads."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.RLock()
        self._conn = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._conn.execute("PRAGMA journal_mode = WAL")
        # What a power failure takes from the end of the plan is done again.
        self._conn.execute("PRAGMA synchronous = NORMAL")
        self._conn.executescript(_SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._conn.close()

    @property
    def phase(self) -> Phase:
        """What the restore is at; everything before it is done and durable."""
        phase: Phase = self._get("phase", "new")
        return phase

    def enter(self, phase: Phase) -> None:
        """Begin a phase, durably: what one leaves behind is not what the one before expects."""
        with self._lock:
            self._conn.execute("PRAGMA synchronous = FULL")
            self._put("phase", phase)
            self._conn.execute("PRAGMA synchronous = NORMAL")

    @property
    def cursor(self) -> tuple[int, tuple[int, int, int]]:
        """Up to where extents are written: the group of files, and the cursor in it."""
        group, *after = self._get("cursor", [0, *FIRST])
        return int(group), (after[0], after[1], after[2])

    def set_cursor(self, group: int, after: tuple[int, int, int]) -> None:
        self._put("cursor", [group, *after])

    @property
    def is_whole(self) -> bool:
        """Tell whether the tree is restored as a whole, not by paths."""
        return bool(self._get("whole", default=True))

    @property
    def root(self) -> int:
        return ROOT if self.is_whole else PLANNED_ROOT

    # Making the plan

    def add_root(self, inode: Inode) -> None:
        with self._lock:
            self._node(inode.file, 0, b"", 0, inode)

    def add_way(self, ways: Iterable[tuple[list[bytes], Inode]]) -> None:
        """Add files at their paths, with plain folders above them."""
        with self._lock:
            self._put("whole", value=False)
            self._node(PLANNED_ROOT, 0, b"", 0, None)
            for parts, inode in ways:
                parent = PLANNED_ROOT
                for depth, part in enumerate(parts[:-1], 1):
                    parent = self._planned_folder(parent, part, depth)
                self._entry(parent, parts[-1], len(parts), inode)

    def _planned_folder(self, parent: int, name: bytes, depth: int) -> int:
        row = self._conn.execute(
            "SELECT file FROM node WHERE parent = ? AND name = ?", (parent, name)
        ).fetchone()
        if row:
            return int(row[0])
        lowest = self._conn.execute("SELECT MIN(file) FROM node").fetchone()[0]
        self._node(lowest - 1, parent, name, depth, None)
        return int(lowest) - 1

    def unlisted(self) -> list[int]:
        """Return some folders whose entries are not in the plan yet."""
        with self._lock:
            rows = self._conn.execute(
                "SELECT file FROM node WHERE listed = 0 ORDER BY file LIMIT ?", (FOLDERS_PER_LIST,)
            ).fetchall()
        return [row[0] for row in rows]

    def add_entries(self, entries: list[tuple[Name, Inode]]) -> None:
        """Add entries of folders; raises HostileReplica for what makes no tree."""
        with self._lock, self._conn:
            self._conn.execute("BEGIN IMMEDIATE")
            depths: dict[int, int] = {}
            for name, inode in entries:
                if name.parent not in depths:
                    depths[name.parent] = self._conn.execute(
                        "SELECT depth FROM node WHERE file = ?", (name.parent,)
                    ).fetchone()[0]
                self._entry(name.parent, name.name, depths[name.parent] + 1, inode)

    def set_listed(self, folders: list[int]) -> None:
        with self._lock:
            self._conn.executemany(
                "UPDATE node SET listed = 1 WHERE file = ?", [(file,) for file in folders]
            )

    def _entry(self, parent: int, name: bytes, depth: int, inode: Inode) -> None:
        known = self._conn.execute("SELECT type FROM node WHERE file = ?", (inode.file,)).fetchone()
        if known is None:
            self._node(inode.file, parent, name, depth, inode)
        elif known[0] == "d" or inode.type == "d":
            raise HostileReplica(f"folder {inode.file} lies in more than one folder")
        else:
            self._insert("INSERT INTO link VALUES (?,?,?)", (parent, name, inode.file))

    def _node(self, file: int, parent: int, name: bytes, depth: int, inode: Inode | None) -> None:
        kind = inode.type if inode else "d"
        row = (
            file,
            parent,
            name,
            depth,
            kind,
            inode.size if inode else 0,
            0 if kind == "d" and inode else 1,
            0,
            msgspec.msgpack.encode(inode) if inode else None,
        )
        self._insert("INSERT INTO node VALUES (?,?,?,?,?,?,?,?,?)", row)

    def _insert(self, sql: str, row: tuple[object, ...]) -> None:
        try:
            self._conn.execute(sql, row)
        except sqlite3.IntegrityError as error:
            raise HostileReplica("the replica has two entries of one name in a folder") from error

    # Reading it

    def node(self, file: int) -> Node | None:
        with self._lock:
            row = self._conn.execute(
                f"SELECT {_COLUMNS} FROM node WHERE file = ?",  # noqa: S608
                (file,),
            ).fetchone()
        return _node_of(row) if row else None

    def nodes(self, files: Sequence[int]) -> dict[int, Node]:
        """Return those of `files` (ids) that are in the plan."""
        marks = ",".join("?" * len(files))
        with self._lock:
            rows = self._conn.execute(
                f"SELECT {_COLUMNS} FROM node WHERE file IN ({marks})",  # noqa: S608
                files,
            ).fetchall()
        return {row[0]: _node_of(row) for row in rows}

    def skip(self, file: int) -> None:
        """Note that a file could not be made: nothing more is done with it."""
        with self._lock:
            self._conn.execute("UPDATE node SET skip = 1 WHERE file = ?", (file,))

    def folders(self, *, deepest_first: bool) -> Iterator[Node]:
        """Yield the folders, each after or before what lies in it."""
        order = "DESC" if deepest_first else "ASC"
        with self._lock:
            deepest = self._conn.execute("SELECT MAX(depth) FROM node").fetchone()[0] or 0
        depths = range(deepest, -1, -1) if deepest_first else range(deepest + 1)
        for depth in depths:
            after = 2**63 - 1 if deepest_first else -(2**63)
            sign = "<" if deepest_first else ">"
            yield from self._pages(
                f"SELECT {_COLUMNS} FROM node WHERE type = 'd' AND depth = {depth}"  # noqa: S608
                f" AND file {sign} ? ORDER BY file {order} LIMIT {ROWS_PER_READ}",
                after,
            )

    def files(self, folder: int) -> Iterator[Node]:
        """Yield the entries of a folder that are no folders."""
        yield from self._pages(
            f"SELECT {_COLUMNS} FROM node WHERE parent = {folder:d} AND type != 'd'"  # noqa: S608
            f" AND name > ? ORDER BY name LIMIT {ROWS_PER_READ}",
            b"",
            key=2,
        )

    def _pages(self, sql: str, after: object, *, key: int = 0) -> Iterator[Node]:
        while True:
            with self._lock:
                rows = self._conn.execute(sql, (after,)).fetchall()
            yield from map(_node_of, rows)
            if len(rows) < ROWS_PER_READ:
                return
            after = rows[-1][key]

    def links(self) -> Iterator[tuple[int, bytes, int]]:
        """Yield the further names (parent, name, file) of files that have several."""
        after: tuple[int, bytes] = (-(2**63), b"")
        while True:
            with self._lock:
                rows = self._conn.execute(
                    "SELECT parent, name, file FROM link WHERE (parent, name) > (?, ?)"
                    " ORDER BY parent, name LIMIT ?",
                    (*after, ROWS_PER_READ),
                ).fetchall()
            yield from rows
            if len(rows) < ROWS_PER_READ:
                return
            after = rows[-1][:2]

    def count_names(self, file: int) -> int:
        """Return how many names a file has in the plan."""
        with self._lock:
            row = self._conn.execute("SELECT COUNT(*) FROM link WHERE file = ?", (file,)).fetchone()
        return 1 + int(row[0])

    def regular_ids(self, after: int, limit: int) -> list[int]:
        """Return ids of regular files with content, rising."""
        with self._lock:
            rows = self._conn.execute(
                "SELECT file FROM node WHERE file > ? AND type = 'f' AND size > 0"
                " ORDER BY file LIMIT ?",
                (after, limit),
            ).fetchall()
        return [row[0] for row in rows]

    def add_issue(self, issue: Issue) -> None:
        """Keep what could not be restored as it should, once however often it is found."""
        with self._lock:
            self._conn.execute(
                "INSERT OR IGNORE INTO issue VALUES (?,?,?)", (issue.path, issue.code, issue.text)
            )

    def issues(self, limit: int) -> tuple[list[Issue], int]:
        """Return the first issues, and how many there are."""
        with self._lock:
            rows = self._conn.execute("SELECT * FROM issue LIMIT ?", (limit,)).fetchall()
            count = self._conn.execute("SELECT COUNT(*) FROM issue").fetchone()[0]
        return [Issue(*row) for row in rows], int(count)

    def totals(self) -> tuple[int, int]:
        """Return how many files the plan has and the bytes of regular ones."""
        with self._lock:
            row = self._conn.execute(
                "SELECT COUNT(*), COALESCE(SUM(CASE WHEN type = 'f' THEN size ELSE 0 END), 0)"
                " FROM node"
            ).fetchone()
        return int(row[0]), int(row[1])

    def path(self, file: int) -> bytes:
        """Return the path of a file below the target, for people."""
        parts: list[bytes] = []
        node = self.node(file)
        while node is not None and node.parent:
            parts.append(node.name)
            node = self.node(node.parent)
        return b"/".join(reversed(parts)) or b"."

    def _get(self, key: str, default: object) -> Any:
        with self._lock:
            row = self._conn.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return msgspec.msgpack.decode(row[0]) if row else default

    def _put(self, key: str, value: object) -> None:
        with self._lock:
            self._conn.execute(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, msgspec.msgpack.encode(value))
            )


def _node_of(row: tuple[Any, ...]) -> Node:
    file, parent, name, depth, kind, size, skip, inode = row
    decoded = _INODE.decode(inode) if inode else None
    return Node(file, parent, name, depth, kind, size, skip, decoded)


async def list_tree(view: StoreView, plan: RestorePlan) -> None:
    """Bring everything below the folders in the plan into it. Raises HostileReplica."""
    while folders := await asyncio.to_thread(plan.unlisted):
        asked = frozenset(folders)
        async for page in view.entries(folders):
            entries = list(zip(page.names, page.inodes, strict=True))
            for name, inode in entries:
                check_entry(name, inode, asked)
            await asyncio.to_thread(plan.add_entries, entries)
        await asyncio.to_thread(plan.set_listed, folders)


async def plan_roots(view: StoreView, plan: RestorePlan, ways: list[list[bytes]]) -> list[bytes]:
    """Put the root, or what lies at `ways`, into the plan; return the ways that lead nowhere."""
    if not ways or not ways[0]:
        root = await view.root()
        if root is None or root.file != ROOT or root.type != "d":
            raise HostileReplica("the replica has no root folder")
        check_inode(root)
        await asyncio.to_thread(plan.add_root, root)
        return []
    inodes = await view.resolve([b"/".join(way) for way in ways])
    found = [(way, inode) for way, inode in zip(ways, inodes, strict=True) if inode is not None]
    for _, inode in found:
        check_inode(inode)
    await asyncio.to_thread(plan.add_way, found)
    return [b"/".join(way) for way, inode in zip(ways, inodes, strict=True) if inode is None]
