"""What a grant that is limited to paths allows of files with many names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from strandline_contracts.points import Name
from strandline_replica_store.errors import NotAllowed
from strandline_replica_store.reading import scope as scope_module
from strandline_replica_store.reading.reader import Reader
from strandline_replica_store.reading.scope import Scope
from strandline_replica_store.replica.replica import Replica
from support.replicas import batch, inode, new_replica, ship

FILE = 1_000_000
DEPTH = 9


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    replica = new_replica(tmp_path / "replica")
    yield replica
    replica.close()


def linked(replica: Replica, links: int, depth: int = 1) -> Reader:
    """Ship one file with so many names, each below `depth` folders of its own; read it."""
    inodes, names = [inode(1, kind="d"), inode(FILE, 10)], []
    folder = 1
    for link in range(links):
        parent = 1
        for level in range(depth):
            folder += 1
            inodes.append(inode(folder, kind="d"))
            names.append(Name(parent, b"s" if level else b"d%d" % link, folder))
            parent = folder
        names.append(Name(parent, b"x", FILE))
    ship(replica, "j", [batch("j", 0, inodes=inodes, names=names)])
    return Reader(replica.folder)


def is_allowed(reader: Reader, path: bytes) -> bool:
    try:
        Scope(reader.conn, 1, [path]).check_file(reader.conn, FILE)
    except NotAllowed:
        return False
    return True


@pytest.mark.parametrize(("links", "depth"), [(1200, 1), (600, DEPTH), (1, 5000)])
def test_a_file_may_be_read_by_each_of_its_names(replica: Replica, links: int, depth: int) -> None:
    reader = linked(replica, links, depth)
    for link in (0, links - 1):
        assert is_allowed(reader, b"d%d" % link)
    assert not is_allowed(reader, b"elsewhere")
    reader.close()


def test_what_is_looked_at_for_one_file_is_bounded(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = linked(replica, 50)
    monkeypatch.setattr(scope_module, "NAMES_CLIMBED", 51)
    assert is_allowed(reader, b"d49")
    monkeypatch.setattr(scope_module, "NAMES_CLIMBED", 25)
    assert not is_allowed(reader, b"d49")
    reader.close()
