"""Changes that are gathered before they are written: whoever reads them sees them at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from strandline_agent.known import MAX_GATHERED_ROWS, FileRow, KnownIndex

DIGESTS = bytes(range(1, 17))


def row_of(file: int, size: int = 4096) -> FileRow:
    return FileRow(file, 1, 1000 + file, 5, 0o100644, 0, 0, size, 7, 8, 9, 1)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[KnownIndex]:
    opened = KnownIndex(tmp_path / "index.db")
    opened.begin(1)
    yield opened
    opened.close()


def put(index: KnownIndex, file: int) -> None:
    index.put_name(1, b"%d" % file, file)
    index.put_page(file, 0, DIGESTS)
    index.put_file(row_of(file))


def test_gathered_changes_are_seen_by_every_reader(index: KnownIndex) -> None:
    put(index, 10)
    assert index.page(10, 0) == DIGESTS
    put(index, 11)
    assert index.pages(11, 0, 5) == [0]
    put(index, 12)
    assert [row.id for row in index.with_inode(1, 1012)] == [12]
    put(index, 13)
    assert index.has_pending_name(1, b"13")
    put(index, 14)
    assert index.retract(14) == [(1, b"14")]
    put(index, 15)
    assert index.totals() == (5, 5 * 4096)


def test_the_last_change_of_a_row_counts(index: KnownIndex) -> None:
    index.put_file(row_of(10, size=1))
    index.put_file(row_of(10, size=2), content_changed=True)
    index.stage("job", 1)
    index.apply(1, b"state")
    found = index.file(10)
    assert found is not None
    assert (found.size, found.changed) == (2, 1)


def test_staged_changes_are_all_there_whatever_their_number(index: KnownIndex) -> None:
    count = MAX_GATHERED_ROWS + 7
    for file in range(10, 10 + count):
        put(index, file)
    index.stage("job", 1)
    index.apply(1, b"state")
    assert len(index.folder(1)) == count
    assert index.page(9 + count, 0) == DIGESTS


def test_changes_of_a_job_that_was_given_up_do_not_come_back(index: KnownIndex) -> None:
    put(index, 10)
    index.abort()
    index.begin(1)
    put(index, 11)
    index.stage("job", 2)
    index.apply(1, b"state")
    assert index.file(10) is None
    assert [entry[1] for entry in index.folder(1)] == [11]
