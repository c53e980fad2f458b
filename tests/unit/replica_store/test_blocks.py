"""Which extents hold some blocks of a file, asked page by page as a check does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from strandline_contracts.points import Extent
from strandline_replica_store.replica import index, tree
from strandline_replica_store.replica.replica import Replica
from support.replicas import new_replica, one_file, ship

STEPS = 100
FAR = 1_000_000


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    """A replica of one recovery point, whose file 2 has one block."""
    replica = new_replica(tmp_path / "replica")
    ship(replica, "j1", one_file("j1", b"one"))
    yield replica
    replica.close()


def steps_of(conn: apsw.Connection, point: int, start: int) -> int:
    """Return how many steps of SQLite's machine it takes to find the extents of one block."""
    steps = 0

    def count() -> bool:
        nonlocal steps
        steps += STEPS
        return False

    conn.set_progress_handler(count, STEPS)
    assert not list(tree.blocks_of(conn, point, 2, start, start + 1))
    conn.set_progress_handler(None)
    return steps


def test_the_newest_state_costs_no_more_for_a_long_past(replica: Replica) -> None:
    def lived_long(conn: apsw.Connection) -> None:
        rows = ((start, born) for start in range(1, 300) for born in range(1, 101))
        conn.executemany("INSERT INTO extent_past VALUES (2, ?, ?2, ?2 + 1, 1, 0, 1, 0)", rows)

    replica.on_database(lived_long)
    with closing(index.connect_to_read(replica.index_path)) as conn:
        assert steps_of(conn, 1, FAR) < 10 * STEPS


def test_a_commit_meanwhile_ends_nothing_of_what_is_told(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tree._has_past

    def committing(conn: apsw.Connection, point: int) -> bool:
        found = real(conn, point)
        ship(replica, "j2", one_file("j2", b"two"))
        return found

    monkeypatch.setattr(tree, "_has_past", committing)
    with closing(index.connect_to_read(replica.index_path)) as conn:
        (told,) = tree.blocks_of(conn, 1, 2, 0, 1)
        assert told == Extent(2, 0, 1, 0, 1, 0)
        monkeypatch.undo()
        assert list(tree.blocks_of(conn, 1, 2, 0, 1)) == [told]
        assert list(tree.blocks_of(conn, 2, 2, 0, 1)) == [Extent(2, 0, 1, 0, 2, 0)]
