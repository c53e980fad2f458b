"""Names like a wrong one, and what a path can mean in a tree."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from strandline_console.browsing import clean_path, readings
from strandline_console.nearest import MAX_NAMES, nearest


def test_the_most_alike_come_first() -> None:
    names = ["database", "data", "mail", "Data-2"]
    assert nearest("dta", names)[0] == "data"
    assert nearest("DATA", names) == ["data", "Data-2", "database"]
    assert nearest("zzz", names) == []
    assert nearest("", names) == []


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=8), st.lists(st.text(max_size=8), max_size=10))
def test_only_given_names_and_few(asked: str, names: list[str]) -> None:
    found = nearest(asked, names)
    assert len(found) <= MAX_NAMES
    assert set(found) <= set(names)


def test_paths_are_cleaned() -> None:
    assert clean_path(b"/docs//./a/") == b"docs/a"
    assert clean_path(b"/") == b""


def test_a_path_of_the_server_is_also_one_of_the_tree() -> None:
    assert readings(b"docs/a", [b"/srv/data"]) == [b"docs/a"]
    assert readings(b"/srv/data/docs", [b"/srv/data"]) == [b"srv/data/docs", b"docs"]
    assert readings(b"/srv/data", [b"/srv/data"]) == [b"srv/data", b""]
    assert readings(b"/srv/database", [b"/srv/data"]) == [b"srv/database"]
    assert readings(b"/etc", [b"/"]) == [b"etc"]
