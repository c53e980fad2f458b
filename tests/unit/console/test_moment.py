"""What --at means."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
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
        ("2026-01-31T18:30:15.25Z", ns("2026-01-31T18:30:15+00:00") + 260_000_000 - 1),
        ("2026-01-31T18:30:15.123Z", ns("2026-01-31T18:30:15+00:00") + 123_999_999),
        ("2026-01-31T18:30:15,000001Z", ns("2026-01-31T18:30:15+00:00") + 1_999),
        ("2026-01-31T18:30:15.123456789Z", ns("2026-01-31T18:30:15+00:00") + 123_456_789),
        ("2026-01-31T18:30:15+05:00", ns("2026-01-31T13:30:16+00:00") - 1),
        ("2026-01-31 18:30", ns("2026-01-31T17:31:00+00:00") - 1),
        ("2026-01-31", ns("2026-01-31T23:00:00+00:00") - 1),
        ("2026-03-29", ns("2026-03-29T22:00:00+00:00") - 1),  # a day of 23 hours
        ("2026-10-25", ns("2026-10-25T23:00:00+00:00") - 1),  # of 25
        ("2026-07-31T18:30:00", ns("2026-07-31T16:30:01+00:00") - 1),
    ],
)
def test_a_time_counts_to_its_end_in_the_local_zone(text: str, until_ns: int) -> None:
    assert parse_at(text, BERLIN) == At(time_ns=until_ns)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 4 * 10**18), st.integers(-12 * 60, 14 * 60))
def test_a_time_in_nanoseconds_is_read_exactly(since_epoch_ns: int, offset_min: int) -> None:
    second, rest_ns = divmod(since_epoch_ns, SECOND_NS)
    local = datetime.fromtimestamp(second, timezone(timedelta(minutes=offset_min)))
    whole, zone = local.isoformat()[:19], local.isoformat()[19:]
    assert parse_at(f"{whole}.{rest_ns:09d}{zone}") == At(time_ns=since_epoch_ns)


@pytest.mark.parametrize("text", ["0", "-1", "yesterday", "1.5", "2026-13-01", "17 18"])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(WrongUse) as refused:
        parse_at(text)
    assert refused.value.exit_code == 2
    assert refused.value.hint
