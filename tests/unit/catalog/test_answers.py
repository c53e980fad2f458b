"""What an answer may hold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from strandline_catalog.answers import MAX_NEAREST, bounded, fitting, nearest


def test_an_answer_has_one_thing_at_least_and_a_most() -> None:
    assert [bounded(asked, 10) for asked in (-5, 0, 1, 10, 11)] == [1, 1, 1, 10, 10]


@given(st.lists(st.integers(1, 50)), st.integers(0, 200))
def test_what_fits_is_the_first_and_as_much_as_can_be(sizes: list[int], limit: int) -> None:
    found = fitting([(size, at) for at, size in enumerate(sizes)], limit)
    assert found == list(range(len(found)))
    assert sum(sizes[: len(found)]) <= limit or len(found) == 1
    if len(found) < len(sizes):
        assert found
        assert sum(sizes[: len(found) + 1]) > limit


def test_the_nearest_names_are_those_that_were_meant() -> None:
    names = ["web-home", "Web-Logs", "database", "mail", "web-hone"]
    assert nearest("web-hom", names)[0] == "web-home"
    assert nearest("WEB-LOGS", names)[0] == "Web-Logs"
    assert nearest("zzzzzz", names) == []
    assert len(nearest("s", [f"s{number}" for number in range(100)])) <= MAX_NEAREST
