"""Rewritten manifests against plain dictionaries: every kept point stays what it was."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import apsw
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from strandline_contracts.points import BLOCK_BYTES, Extent, Issue, Name, Totals
from strandline_replica_store.files import durable, manifest
from strandline_replica_store.files.manifest import ChunkName, Delta, Head, ManifestWriter, Tail
from strandline_replica_store.replica import dropping, index, rewrite
from strandline_replica_store.replica.dropping import Chain, Step
from strandline_replica_store.replica.index import ChunkRow
from support import index_oracle
from support.index_oracle import Oracle, deltas, filled, seen, without
from support.replicas import SOURCE, inode

CHUNKS = range(1, 10)
HISTORIES = st.lists(st.lists(deltas(), min_size=1, max_size=3), min_size=2, max_size=7)


class Line:
    """A chain of manifests in a folder, its index, and what each of its points must read as."""

    def __init__(self, folder: Path) -> None:
        for name in ("manifests", "staging"):
            (folder / name).mkdir()
        self.folders = rewrite.Folders(
            str(folder / "manifests"),
            str(folder / "staging"),
            str(folder / "damaged"),
            str(folder / "index.db"),
        )
        self.conn = new_index(self.folders.index_path)
        self.states: dict[int, Oracle] = {}
        self._dead: set[int] = set()
        self._oracle = Oracle()

    def commit(self, point_deltas: list[Delta]) -> None:
        number = len(self.states) + 1
        newest = index.newest_point(self.conn)
        parent = (newest.number, newest.digest) if newest else (0, b"")
        head = Head(
            format=1,
            source=SOURCE,
            job=f"j{number}",
            attempt=1,
            number=number,
            parent=parent[0],
            parent_digest=parent[1],
            kind="express_full",
            server="web-1",
        )
        writer = ManifestWriter.begin(f"{self.folders.staging}/{number}.part", head)
        for delta in point_deltas:
            self._dead.update(delta.gone_inodes)
            alive = without(delta, self._dead)
            writer.append(alive)
            self._oracle.apply(alive)
        writer.finish(self.path(number), tail(number))
        self.states[number] = copy.deepcopy(self._oracle)
        apply(self.conn, self.path(number))

    def path(self, number: int) -> str:
        return manifest.path_of(self.folders.manifests, number)

    def drop(self, unwanted: set[int]) -> list[Step]:
        steps = dropping.plan(sorted(self.states), unwanted)
        done = list(rewrite.write_all(self.folders, steps))
        assert [each.step for each in done] == steps
        for step in steps:
            with index.transaction(self.conn):
                index.drop_points(self.conn, step.dropped, step.number, step.parent)
            for number in step.dropped:
                durable.remove(self.path(number))
                del self.states[number]
        for table in index.PROJECTED:
            for keys in list(index.useless_rows(self.conn, table)):
                index.delete_rows(self.conn, table, keys)
        return steps

    def made_anew(self) -> apsw.Connection:
        """Return an index of the manifests that are there."""
        conn = new_index(":memory:")
        for number in manifest.numbers_in(self.folders.manifests):
            apply(conn, self.path(number))
        return conn


def new_index(path: str) -> apsw.Connection:
    conn = index.connect(path)
    rows = (ChunkRow(c, blake3(bytes([c])).digest(), 32 * 4096, 9, 0, 1, c) for c in CHUNKS)
    index.add_chunks(conn, rows)
    return conn


def tail(number: int) -> Tail:
    return Tail(
        digest=b"",
        frames=0,
        taken_at_ns=number,
        received_at_ns=number,
        consistency="crash",
        provider="none",
        tracker="scan",
        partial=False,
        totals=Totals(files=number),
        stored_bytes=number,
    )


def apply(conn: apsw.Connection, path: str) -> None:
    found = manifest.check(path)
    newest = index.newest_point(conn)
    parent = (newest.number, newest.digest) if newest else (0, b"")
    assert (found.head.parent, found.head.parent_digest) == parent
    with index.transaction(conn):
        index.apply_manifest(conn, found, manifest.deltas(path))


def check(conn: apsw.Connection, states: dict[int, Oracle]) -> None:
    for number, state in states.items():
        found = seen(conn, number)
        assert found.inodes == state.inodes
        assert found.names == state.names
        assert filled(found) == filled(state)


@settings(max_examples=60, deadline=None)
@given(history=HISTORIES, data=st.data())
def test_every_kept_point_reads_as_it_was(history: list[list[Delta]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        line = Line(Path(folder))
        gone = data.draw(st.dictionaries(st.integers(1, 7), st.integers(2, 6), max_size=2))
        for number, point_deltas in enumerate(history, start=1):
            last = [Delta(gone_inodes=[gone[number]])] if number in gone else []
            line.commit([*point_deltas, *last])
        identities = dict(line.conn.execute("SELECT number, digest FROM point"))
        for _ in range(data.draw(st.integers(1, 2))):
            line.drop(data.draw(st.sets(st.integers(1, 7))))
            check(line.conn, line.states)
            anew = line.made_anew()
            check(anew, line.states)
            assert index_oracle.normalised(anew) == index_oracle.normalised(line.conn)
            anew.close()
        for number, digest in line.conn.execute("SELECT number, digest FROM point"):
            assert digest == identities[number]
        line.conn.close()


def test_many_are_rewritten_in_one_pass_and_say_the_same(tmp_path: Path) -> None:
    """Nothing dropped: what each of them makes of its parent is what it made before."""
    line = Line(tmp_path)
    for number in range(1, 6):
        line.commit([Delta(extents=[Extent(2, number, 2, 0, number, 0)], inodes=[inode(2, 99)])])
    before = index_oracle.normalised(line.conn)
    steps = dropping.again([1, 2, 3, 4, 5], {1, 3, 4, 5})
    assert [each.mended for each in rewrite.write_all(line.folders, steps)] == [False] * 4
    assert manifest.head_of(line.path(3)).replaces
    assert not manifest.head_of(line.path(2)).replaces
    assert index_oracle.normalised(line.made_anew()) == before


def test_truncated_and_grown_again_is_a_hole(tmp_path: Path) -> None:
    """Between two kept points a file became short, and long again: its blocks are no more."""
    line = Line(tmp_path)
    line.commit([Delta(inodes=[inode(2, 10 * BLOCK_BYTES)], extents=[Extent(2, 0, 10, 0, 1, 0)])])
    line.commit([Delta(inodes=[inode(2, BLOCK_BYTES)])])
    line.commit([Delta(inodes=[inode(2, 10 * BLOCK_BYTES)], extents=[Extent(2, 8, 1, 0, 2, 0)])])
    line.drop({2})
    first = next(manifest.deltas(line.path(3)))
    assert first == Delta(extents=[Extent(2, 1, 7, 1), Extent(2, 9, 1, 1)])
    check(line.made_anew(), line.states)


def test_a_frame_is_bounded_however_much_changed(tmp_path: Path) -> None:
    line = Line(tmp_path)
    count = 40_000
    parts = [
        Delta(
            extents=[Extent(2, b * 2, 1, 0, 1 + b % 9, b % 32) for b in range(first, first + 8000)]
        )
        for first in range(0, count, 8000)
    ]
    line.commit([Delta(inodes=[inode(2, count * 2 * BLOCK_BYTES)])])
    line.commit(parts)
    line.commit([Delta(inodes=[inode(2, count * 2 * BLOCK_BYTES)])])
    line.drop({1, 2})
    frames = list(manifest.deltas(line.path(3)))
    assert sum(len(delta.extents) for delta in frames) == count
    assert 2 < len(frames) < 12
    assert max(len(delta.extents) for delta in frames) * 48 <= 1 << 20


def test_issues_stay(tmp_path: Path) -> None:
    line = Line(tmp_path)
    issue = Issue(b"a/b", "denied", "no")
    line.commit([Delta()])
    line.commit([Delta(issues=[issue])])
    line.drop({1})
    assert [delta.issues for delta in manifest.deltas(line.path(2))] == [[issue]]


GOLDEN = Path(__file__).parent / "golden" / "rewritten.slm"


def golden_line(folder: Path) -> Line:
    """Points 1 to 3; that in the middle is dropped."""
    line = Line(folder)
    line.commit(
        [
            Delta(
                extents=[Extent(2, 0, 4, 0, 1, 0), Extent(3, 0, 1, 2)],
                inodes=[inode(1, kind="d"), inode(2, 4 * BLOCK_BYTES), inode(3, 9)],
                names=[Name(1, b"two", 2), Name(1, b"three", 3)],
            )
        ]
    )
    line.commit(
        [Delta(inodes=[inode(2, BLOCK_BYTES)], gone_inodes=[3], gone_names=[(1, b"three")])]
    )
    line.commit([Delta(inodes=[inode(2, 4 * BLOCK_BYTES)], extents=[Extent(2, 2, 1, 0, 5, 7)])])
    line.drop({2})
    return line


def test_golden_rewritten_manifest(tmp_path: Path) -> None:
    path = Path(golden_line(tmp_path).path(3))
    assert path.read_bytes() == GOLDEN.read_bytes()
    found = manifest.check(str(path))
    assert (found.head.parent, found.head.replaces[0][0]) == (1, 3)
    assert list(manifest.deltas(str(path))) == [
        Delta(extents=[Extent(2, 1, 1, 1), Extent(2, 3, 1, 1)]),
        Delta(gone_names=[(1, b"three")]),
        Delta(gone_inodes=[3]),
        Delta(inodes=[inode(2, 4 * BLOCK_BYTES)]),
        Delta(
            chunks=[ChunkName(5, blake3(bytes([5])).digest(), 32 * 4096)],
            extents=[Extent(2, 2, 1, 0, 5, 7)],
        ),
    ]


# The rules


@given(points=st.sets(st.integers(1, 30), min_size=1), unwanted=st.sets(st.integers(1, 30)))
def test_a_plan_drops_what_is_unwanted_but_never_the_newest(
    points: set[int], unwanted: set[int]
) -> None:
    steps = dropping.plan(sorted(points), unwanted)
    dropped = [number for step in steps for number in step.dropped]
    assert set(dropped) == (points & unwanted) - {max(points)}
    kept = points - set(dropped)
    for step in steps:
        assert step.number in kept
        assert step.parent in kept | {0}
        assert set(step.dropped) == {n for n in points if step.parent < n < step.number}
        assert step.dropped


def test_the_chain_is_what_leads_to_the_newest() -> None:
    assert dropping.chain({}) == Chain([], [], [])
    assert dropping.chain({1: 0, 2: 1, 3: 2}) == Chain([1, 2, 3], [], [])
    assert dropping.chain({1: 0, 2: 1, 3: 2, 4: 1}) == Chain([1, 4], [2, 3], [])
    assert dropping.chain({1: 0, 2: 1, 5: 0}) == Chain([5], [1, 2], [])
    # Nobody knows what the one that cannot be read builds on.
    assert dropping.chain({1: 0, 2: 1, 3: None}) == Chain([1, 2], [], [3])
    assert dropping.chain({1: 0, 3: 2, 4: 3}) == Chain([1, 3, 4], [], [2])
    assert dropping.chain({1: 0, 2: 1, 3: None, 6: 3}) == Chain([1, 2, 6], [], [3])
