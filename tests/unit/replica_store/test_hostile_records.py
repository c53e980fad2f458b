"""Records that no file can have are refused: they would stand in the way of every restore."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from strandline_replica_store.errors import BadDelta
from strandline_replica_store.replica.rules import MAX_ID
from support.replicas import SERVER, batch, end_of, inode, new_replica, open_of, ship

MOST_OWNER = 2**32 - 1


@pytest.mark.parametrize(
    "odd",
    [
        {"mtime_ns": 2**63},
        {"atime_ns": -(2**63)},
        {"uid": 2**32},
        {"gid": -1},
        {"mode": 2**32},
        {"rdev": 2**63},
        {"target": b"a\0b"},
        {"xattrs": [(b"user.a\0b", b"v")]},
    ],
)
def test_an_impossible_record_is_refused(tmp_path: Path, odd: dict[str, Any]) -> None:
    replica = new_replica(tmp_path / "replica")
    replica.open_job(SERVER, open_of(replica, "j"))
    record = msgspec.structs.replace(inode(2), **odd)
    with pytest.raises(BadDelta, match="an inode that cannot be"):
        replica.take("j", 1, [batch("j", 0, inodes=[inode(1, kind="d"), record])])
    replica.close()


@pytest.mark.parametrize(
    "odd",
    [
        {"mtime_ns": MAX_ID, "ctime_ns": 2**64 - 1, "atime_ns": -MAX_ID, "birth_ns": 2**64 - 1},
        {"uid": MOST_OWNER, "gid": MOST_OWNER, "mode": 0o107777, "fs": 2**64 - 1, "ino": MAX_ID},
        {"xattrs": [(b"user.a", b"\0")]},
    ],
)
def test_what_a_file_system_may_give_is_taken(tmp_path: Path, odd: dict[str, Any]) -> None:
    replica = new_replica(tmp_path / "replica")
    record = msgspec.structs.replace(inode(2), **odd)
    messages = [batch("j", 0, inodes=[inode(1, kind="d"), record])]
    assert ship(replica, "j", messages).number == 1
    assert replica.finish(end_of("j", messages)).number == 1
    replica.close()
