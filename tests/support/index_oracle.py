"""The index against plain dictionaries: an oracle, histories of deltas, and reading points back."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import apsw
from hypothesis import strategies as st

from strandline_contracts.codec import decode
from strandline_contracts.points import EXTENT_DATA, EXTENT_HOLE, EXTENT_ZERO, Extent, Inode, Name
from strandline_replica_store.files.manifest import Delta
from strandline_replica_store.replica import index, tree
from support.replicas import inode

FILES = range(2, 7)
FOLDERS = (1, 2)
NAMES = (b"a", b"b", b"c")
BLOCKS = 24


@dataclass
class Oracle:
    """A tree as plain dictionaries: the obvious way to apply a delta."""

    inodes: dict[int, Inode] = field(default_factory=dict)
    names: dict[tuple[int, bytes], int] = field(default_factory=dict)
    blocks: dict[int, dict[int, tuple[int, int, int]]] = field(default_factory=dict)

    def apply(self, delta: Delta) -> None:
        for key in delta.gone_names:
            self.names.pop(key, None)
        for file in delta.gone_inodes:
            self.inodes.pop(file, None)
            self.blocks.pop(file, None)
            self.names = {key: to for key, to in self.names.items() if key[0] != file}
        for record in delta.inodes:
            self.inodes[record.file] = record
            end = -(-record.size // 4096)
            kept = self.blocks.get(record.file, {})
            self.blocks[record.file] = {b: place for b, place in kept.items() if b < end}
        for name in delta.names:
            self.names[name.parent, name.name] = name.file
        for extent in delta.extents:
            held = self.blocks.setdefault(extent.file, {})
            for i in range(extent.blocks):
                held.pop(extent.start + i, None)
                if extent.kind == EXTENT_DATA:
                    held[extent.start + i] = (0, extent.chunk, extent.chunk_block + i)
                elif extent.kind == EXTENT_ZERO:
                    held[extent.start + i] = (2, 0, 0)


def extents() -> st.SearchStrategy[Extent]:
    def make(file: int, start: int, blocks: int, kind: int, chunk: int, at: int) -> Extent:
        data = kind == EXTENT_DATA
        return Extent(file, start, blocks, kind, chunk if data else 0, at if data else 0)

    return st.builds(
        make,
        st.sampled_from(FILES),
        st.integers(0, BLOCKS - 1),
        st.integers(1, 12),
        st.sampled_from([EXTENT_DATA, EXTENT_DATA, EXTENT_HOLE, EXTENT_ZERO]),
        st.integers(1, 9),
        st.integers(0, 20),
    )


def deltas() -> st.SearchStrategy[Delta]:
    keys = st.tuples(st.sampled_from(FOLDERS), st.sampled_from(NAMES))
    return st.builds(
        lambda e, i, n, gone: Delta([], e, i, n, [], gone, []),
        st.lists(extents(), max_size=6),
        st.lists(
            st.builds(inode, st.sampled_from(FILES), st.integers(0, BLOCKS * 4096)), max_size=3
        ),
        st.lists(
            st.builds(lambda key, file: Name(key[0], key[1], file), keys, st.sampled_from(FILES)),
            max_size=3,
        ),
        st.lists(keys, max_size=2),
    )


def seen(conn: apsw.Connection, point: int) -> Oracle:
    """Read a whole recovery point back through the questions that readers ask."""
    found = Oracle()
    for file in (1, *FILES):
        record = tree.inode_record(conn, point, file)
        if record is not None:
            found.inodes[file] = decode(record, Inode)
        for parent, name in tree.parents(conn, point, file):
            found.names[parent, name] = file
        for extent in tree.blocks_of(conn, point, file, 0, 1 << 40):
            add(found, extent)
    return found


def add(found: Oracle, extent: Extent) -> None:
    held = found.blocks.setdefault(extent.file, {})
    for i in range(extent.blocks):
        assert extent.start + i not in held
        at = (0, extent.chunk, extent.chunk_block + i) if extent.kind == EXTENT_DATA else (2, 0, 0)
        held[extent.start + i] = at


def filled(oracle: Oracle) -> dict[int, dict[int, tuple[int, int, int]]]:
    return {file: blocks for file, blocks in oracle.blocks.items() if blocks}


def paged(conn: apsw.Connection, point: int, files: list[int]) -> Oracle:
    """Read all extents through pages of three."""
    found, after = Oracle(), (-1, 0, 0)
    while page := tree.extents(conn, point, files, after, 3):
        for extent in page:
            key = (extent.chunk, extent.file, extent.start)
            assert key > after
            after = key
            add(found, extent)
    return found


def without(delta: Delta, dead: set[int]) -> Delta:
    """Leave out what a dead file cannot have: its id never comes back."""
    return Delta(
        [],
        [e for e in delta.extents if e.file not in dead],
        [i for i in delta.inodes if i.file not in dead],
        [n for n in delta.names if n.file not in dead and n.parent not in dead],
        delta.gone_inodes,
        delta.gone_names,
        delta.issues,
    )


def normalised(conn: apsw.Connection) -> dict[str, list[tuple[Any, ...]]]:
    """Return what the index says of its recovery points, whichever way it came to say it.

    Two indexes of the same manifests give the same, also when points were dropped from one of
    them. Holds all of it in memory.
    """
    kept = [number for (number,) in conn.execute("SELECT number FROM point ORDER BY number")]

    def first_from(number: int) -> int:
        at = bisect_left(kept, number)
        return kept[at] if at < len(kept) else index.FOREVER

    def spanned(rows: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
        for *key, born, died in rows:
            if first_from(born) != first_from(died):
                yield (*key, first_from(born), first_from(died))

    extents = spanned(
        conn.execute(
            "SELECT file, start, blocks, kind, chunk, chunk_block, born, ?1 FROM extent UNION ALL"
            " SELECT file, start, blocks, kind, chunk, chunk_block, born, died FROM extent_past",
            (index.FOREVER,),
        )
    )
    return {
        "point": list(conn.execute("SELECT number, digest, job, record FROM point ORDER BY 1")),
        "extent": _joined_extents(sorted(extents, key=lambda row: (row[0], *row[6:], row[1]))),
        "inode": sorted(spanned(conn.execute("SELECT file, record, born, died FROM inode"))),
        "name": sorted(spanned(conn.execute("SELECT parent, name, file, born, died FROM name"))),
    }


def _joined_extents(rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Make one of rows that go on, in the file and in the chunk, where the one before ends."""
    found: list[tuple[Any, ...]] = []
    for row in rows:
        file, start, blocks, kind, chunk, chunk_block, *span = row
        if found:
            last = found[-1]
            goes_on = (last[0], last[1] + last[2], last[3], last[4], *last[6:])
            at = last[5] + last[2] if chunk else 0
            if goes_on == (file, start, kind, chunk, *span) and at == chunk_block:
                found[-1] = (*last[:2], last[2] + blocks, *last[3:])
                continue
        found.append((file, start, blocks, kind, chunk, chunk_block, *span))
    return found
