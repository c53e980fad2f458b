"""What --at means."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strandline_console.errors import WrongUse
from strandline_console.moment import At, parse_at

SECOND_NS = 1_000_000_000
BERLIN = ZoneInfo("Europe/Berlin")


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * SECOND_NS


def test_nothing_is_the_newest() -> None:
    assert parse_at("") == At()


def test_a_number_is_a_recovery_point() -> None:
    assert parse_at("17") == At(number=17)


@pytest.mark.parametrize(
    ("text", "until_ns"),
    [
        ("2026-01-31T18:30:15Z", ns("2026-01-31T18:30:16+00:00") - 1),
        ("2026-01-31T18:30Z", ns("2026-01-31T18:31:00+00:00") - 1),
        ("2026-01-31T18:30:15.25Z", ns("2026-01-31T18:30:15+00:00") + SECOND_NS // 4),
        ("2026-01-31T18:30:15+05:00", ns("2026-01-31T13:30:16+00:00") - 1),
        ("2026-01-31 18:30", ns("2026-01-31T17:31:00+00:00") - 1),
        ("2026-01-31", ns("2026-01-31T23:00:00+00:00") - 1),
        ("2026-07-31T18:30:00", ns("2026-07-31T16:30:01+00:00") - 1),
    ],
)
def test_a_time_counts_to_its_end_in_the_local_zone(text: str, until_ns: int) -> None:
    assert parse_at(text, BERLIN) == At(time_ns=until_ns)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 4 * 10**15), st.integers(-12 * 60, 14 * 60))
def test_any_exact_time_is_read_exactly(since_epoch_us: int, offset_min: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=since_epoch_us)
    local = moment.astimezone(timezone(timedelta(minutes=offset_min)))
    assert parse_at(local.isoformat(timespec="microseconds")) == At(time_ns=since_epoch_us * 1000)


@pytest.mark.parametrize("text", ["0", "-1", "yesterday", "1.5", "2026-13-01", "17 18"])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(WrongUse) as refused:
        parse_at(text)
    assert refused.value.exit_code == 2
    assert refused.value.hint
