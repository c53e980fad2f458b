"""Which migrations are missing, and when a database is not ours to go on with."""

from __future__ import annotations

import pytest

from strandline_catalog.errors import BadMigration
from strandline_catalog.migrate import Migration, missing, read_migrations

ONE, TWO = Migration(1, "one", "c1", "SELECT 1"), Migration(2, "two", "c2", "SELECT 2")


def test_the_files_of_the_package_are_numbered_without_a_hole() -> None:
    found = read_migrations()
    assert found
    assert missing(found, {}) == found
    assert missing(found, {each.number: each.checksum for each in found}) == []


def test_only_what_is_new_is_applied() -> None:
    assert missing([ONE, TWO], {1: "c1"}) == [TWO]


@pytest.mark.parametrize(
    ("migrations", "applied"),
    [
        ([ONE, TWO], {1: "changed"}),
        ([ONE], {1: "c1", 2: "c2"}),
        ([ONE, TWO], {2: "c2"}),
        ([ONE, ONE._replace(name="other")], {}),
        ([TWO], {}),
    ],
)
def test_another_history_is_refused(migrations: list[Migration], applied: dict[int, str]) -> None:
    with pytest.raises(BadMigration):
        missing(migrations, applied)
