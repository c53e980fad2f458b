"""The instants of cron expressions, over changes of the clock too."""

from __future__ import annotations

import itertools
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strandline_scheduler.cron import (
    HOUR_NS,
    SECOND_NS,
    check_expression,
    cron_instants,
    newest_instant,
)
from strandline_scheduler.errors import BadPolicy

BERLIN = ZoneInfo("Europe/Berlin")
DAY_NS = 24 * HOUR_NS


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * SECOND_NS


def first(expression: str, zone: ZoneInfo, after: str, count: int) -> list[str]:
    found = itertools.islice(cron_instants((expression,), zone, at(after)), count)
    return [datetime.fromtimestamp(each // SECOND_NS, zone).isoformat() for each in found]


def test_a_time_that_the_clock_skips_is_taken_after_the_jump() -> None:
    assert first("30 2 * * *", BERLIN, "2026-03-28T12:00:00+01:00", 2) == [
        "2026-03-29T03:00:00+02:00",
        "2026-03-30T02:30:00+02:00",
    ]


def test_a_time_that_comes_twice_is_taken_the_first_time() -> None:
    assert first("30 2 * * *", BERLIN, "2026-10-24T12:00:00+02:00", 2) == [
        "2026-10-25T02:30:00+02:00",
        "2026-10-26T02:30:00+01:00",
    ]


def test_a_doubled_time_is_not_taken_again_from_within_the_second_hour() -> None:
    # 02:10 on the wall's clock, for the second time: 02:30 has been, an hour before.
    assert first("30 2 * * *", BERLIN, "2026-10-25T02:10:00+01:00", 1) == [
        "2026-10-26T02:30:00+01:00"
    ]
    newest = newest_instant(("30 2 * * *",), BERLIN, at("2026-10-25T02:10:00+01:00"), DAY_NS)
    assert newest == (at("2026-10-25T02:30:00+02:00"), at("2026-10-26T02:30:00+01:00"))


def test_stars_follow_real_time_through_the_doubled_hour() -> None:
    found = list(
        itertools.takewhile(
            lambda each: each <= at("2026-10-25T03:00:00+01:00"),
            cron_instants(("*/30 * * * *",), BERLIN, at("2026-10-25T01:59:59+02:00")),
        )
    )
    assert [b - a for a, b in itertools.pairwise(found)] == [1800 * SECOND_NS] * 4


def test_several_expressions_give_one_rising_row_without_doubles() -> None:
    found = itertools.islice(
        cron_instants(("0 6 * * *", "0 */6 * * *"), ZoneInfo("UTC"), at("2026-01-01T00:00:00Z")), 4
    )
    hours = [(each - at("2026-01-01T00:00:00Z")) // HOUR_NS for each in found]
    assert hours == [6, 12, 18, 24]


@pytest.mark.parametrize("expression", ["", "x", "60 * * * *", "0 0 31 2 *", "1 2 3 4 5 6", "* *"])
def test_what_is_no_expression_is_refused(expression: str) -> None:
    with pytest.raises(BadPolicy):
        check_expression(expression)


ZONES = st.sampled_from(
    ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]
)
EXPRESSIONS = st.lists(
    st.sampled_from(
        ["0 2 * * *", "30 2 * * *", "15,45 1-3 * * 0", "*/20 * * * *", "10 */2 * * *", "0 3 1 * *"]
    ),
    min_size=1,
    max_size=3,
).map(tuple)


@settings(max_examples=120, deadline=None)
@given(
    EXPRESSIONS,
    ZONES,
    st.sampled_from(["2026-03-08", "2026-03-29", "2026-04-05", "2026-10-04", "2026-10-25"]),
    st.integers(-40 * 3600, 40 * 3600),
    st.integers(0, 30 * 3600),
)
def test_the_newest_instant_is_that_of_the_row_from_wherever_it_began(
    expressions: tuple[str, ...], zone_name: str, day: str, offset_s: int, earlier_s: int
) -> None:
    zone = ZoneInfo(zone_name)
    now = at(f"{day}T01:00:00Z") + offset_s * SECOND_NS
    reach = 8 * DAY_NS
    # The oracle: the whole row, from a start that has nothing to do with the one asked.
    row = list(
        itertools.takewhile(
            lambda each: each <= now + 40 * DAY_NS,
            cron_instants(expressions, zone, now - reach - earlier_s * SECOND_NS),
        )
    )
    before = [each for each in row if now - reach < each <= now]
    after = [each for each in row if each > now]
    expected = (before[-1], after[0]) if before else None
    assert newest_instant(expressions, zone, now, reach) == expected
