"""Whole histories of a replica against a dictionary that keeps every state: path to bytes."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from strandline_contracts.points import BLOCK_BYTES, Extent, Name
from strandline_replica_store.checking.verify import verify
from strandline_replica_store.reading.reader import Reader
from strandline_replica_store.replica import index, tree
from strandline_replica_store.replica.replica import Replica
from support import index_oracle
from support.replicas import batch, chunk, content, inode, new_replica, open_replica, ship

FILES = st.integers(2, 4)
BLOCKS = 12
WRITE = st.tuples(st.just("write"), FILES, st.integers(0, BLOCKS - 1), st.integers(1, 6))
CUT = st.tuples(st.just("cut"), FILES, st.integers(0, BLOCKS), st.just(0))
GONE = st.tuples(st.just("gone"), FILES, st.just(0), st.just(0))
CHANGES = st.lists(WRITE | WRITE | CUT | GONE, min_size=1, max_size=4)
STEPS = st.lists(
    st.tuples(st.just("commit"), CHANGES)
    | st.tuples(st.just("commit"), CHANGES)
    | st.tuples(st.just("drop"), st.sets(st.integers(1, 9), max_size=4))
    | st.tuples(st.just("rewrite"), st.sets(st.integers(1, 9), max_size=4))
    | st.tuples(st.sampled_from(["reindex", "reopen", "deleted index"]), st.none()),
    min_size=3,
    max_size=12,
)


class History:
    """A replica and what each of its points must hold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.replica: Replica = new_replica(folder, segment_limit_bytes=100_000)
        self.states: dict[int, dict[bytes, bytes]] = {}
        self._files: dict[int, bytearray] = {}
        # Ids never come back: each new file of a name has another one.
        self._ids = {key: key for key in (2, 3, 4)}
        self._count = 0

    def commit(self, changes: list[tuple[str, int, int, int]]) -> None:
        self._count += 1
        job = f"j{self._count}"
        messages = [batch(job, 0, inodes=[inode(1, kind="d")])]
        for what, key, first, blocks in changes:
            fields = getattr(self, f"_{what}")(key, first, blocks)
            messages.append(batch(job, len(messages), **fields))
        point = ship(self.replica, job, messages)
        self.states[point.number] = {
            b"f%d" % key: bytes(self._files[self._ids[key]])
            for key in self._ids
            if self._ids[key] in self._files
        }

    def _write(self, key: int, first: int, blocks: int) -> dict[str, object]:
        file = self._ids[key]
        data = random.Random(f"{self._count} {key} {first}").randbytes(blocks * BLOCK_BYTES)
        held = self._files.setdefault(file, bytearray())
        end = (first + blocks) * BLOCK_BYTES
        held.extend(bytes(max(0, end - len(held))))
        held[first * BLOCK_BYTES : end] = data
        return {
            "chunks": [chunk(data)],
            "extents": [Extent(file, first, blocks, 0, 0, 0)],
            **self._named(key, file),
        }

    def _cut(self, key: int, first: int, _: int) -> dict[str, object]:
        file = self._ids[key]
        held = self._files.setdefault(file, bytearray())
        del held[first * BLOCK_BYTES :]
        return self._named(key, file)

    def _gone(self, key: int, *_: int) -> dict[str, object]:
        file = self._ids[key]
        self._ids[key] += 10
        if self._files.pop(file, None) is None:
            return {}
        return {"gone_inodes": [file], "gone_names": [(1, b"f%d" % key)]}

    def _named(self, key: int, file: int) -> dict[str, object]:
        return {
            "inodes": [inode(file, len(self._files[file]))],
            "names": [Name(1, b"f%d" % key, file)],
        }

    def drop(self, numbers: set[int]) -> None:
        due = [n for n in sorted(self.states) if n in numbers and n != max(self.states)]
        assert self.replica.drop(numbers, "retention") == due
        for number in due:
            del self.states[number]

    def reopen(self, *, without_index: bool = False) -> None:
        self.replica.close()
        if without_index:
            (self.folder / "index.db").unlink()
        self.replica = open_replica(self.folder, segment_limit_bytes=100_000)

    def step(self, what: str, value: object) -> None:
        if what == "reindex":
            self.replica.reindex()
        elif what in ("reopen", "deleted index"):
            self.reopen(without_index=what != "reopen")
        elif what == "rewrite":
            assert isinstance(value, set)
            self.replica.rewrite(value)
        else:
            getattr(self, what)(value)

    def check(self) -> None:
        assert self.replica.points() == sorted(self.states)
        found = {n: self._read(n) for n in self.states}
        assert found == self.states
        reader = Reader(str(self.folder))
        assert verify(reader, self.replica.newest).damaged == 0
        reader.close()

    def _read(self, number: int) -> dict[bytes, bytes]:
        conn = index.connect_to_read(str(self.folder / "index.db"))
        entries = tree.entries(conn, number, 1, b"", 99)
        conn.close()
        return {entry.name: content(self.folder, number, entry.file) for entry in entries}

    def rows(self) -> dict[str, object]:
        conn = index.connect_to_read(str(self.folder / "index.db"))
        try:
            return dict(index_oracle.normalised(conn))
        finally:
            conn.close()


@settings(max_examples=20, deadline=None)
@given(STEPS)
def test_every_kept_state_is_there_after_any_history(steps: list[tuple[str, object]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        history = History(Path(folder) / "replica")
        for what, value in steps:
            history.step(what, value)
        history.check()
        before = history.rows()
        history.reopen(without_index=True)
        assert history.rows() == before
        history.check()
        history.replica.close()
