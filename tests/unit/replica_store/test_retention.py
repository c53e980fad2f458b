"""Retention: against an oracle that asks of each point by itself, and the laws that bind."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from strandline_contracts.policy import Retention
from strandline_replica_store.forgetting.retention import (
    DAY_NS,
    SECOND_NS,
    Kept,
    Point,
    Policy,
    damaged_points,
    is_worth_dropping,
    kept,
    resolved,
)

HOUR_NS = 3600 * SECOND_NS
# Over the end of October: an hour that comes twice, a month and (with others) a week that end.
START = datetime(2026, 10, 20, tzinfo=UTC)
START_NS = int(START.timestamp()) * SECOND_NS
ZONES = ["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kathmandu"]
COUNTS = ("last", "days", "hourly", "daily", "weekly", "monthly", "yearly")

retentions = st.builds(
    Retention,
    **{name: st.integers(0, 4) for name in COUNTS},
    log_window_s=st.sampled_from([0, 0, 3600, 5 * 86_400]),
).filter(lambda retention: retention != Retention())
policies = st.builds(
    Policy,
    retention=retentions,
    timezone=st.sampled_from(ZONES),
    held=st.lists(st.integers(0, 12), max_size=1).map(tuple),
    protected=st.sampled_from([True, True, True, False]),
)
# Times as a clock gives them that was set now and then: rising mostly, by minutes to months.
steps = st.one_of(
    st.integers(0, 3 * 3600), st.integers(0, 40 * 86_400), st.integers(-30 * 86_400, 0)
)


@st.composite
def histories(draw: st.DrawFn) -> list[Point]:
    points = []
    at_ns = START_NS
    for number in range(1, draw(st.integers(1, 14)) + 1):
        at_ns += draw(steps) * SECOND_NS
        partial, damaged = draw(st.tuples(st.booleans(), st.sampled_from([False, False, True])))
        points.append(Point(2 * number, at_ns, partial, damaged))
    return points


nows = st.integers(-10 * 86_400, 400 * 86_400).map(lambda s: START_NS + s * SECOND_NS)


# The oracle: of one point, is there a reason to keep it?


def local(point: Point, zone: str) -> datetime:
    return datetime.fromtimestamp(point.received_at_ns // SECOND_NS, ZoneInfo(zone))


def period(point: Point, rule: str, zone: str) -> Any:
    at = local(point, zone)
    if rule == "hourly":
        # Two hours that look the same differ by their distance from UTC.
        return at.replace(minute=0, second=0, fold=0, tzinfo=None) - (at.utcoffset() or timedelta())
    if rule == "daily":
        return at.date()
    if rule == "weekly":
        return at.isocalendar()[:2]
    return (at.year, at.month) if rule == "monthly" else at.year


def oracle(points: Sequence[Point], policy: Policy, now_ns: int, point: Point) -> bool:
    retention, zone = policy.retention, policy.timezone
    counted = [p for p in points if p.received_at_ns <= now_ns]
    sound = [p.number for p in points if not p.damaged]
    whole = [p.number for p in points if not p.damaged and not p.partial]
    if (
        point.number == max(p.number for p in points)
        or point.number in (max(sound, default=0), max(whole, default=0))
        or point.received_at_ns > now_ns
        or point.number in policy.held
        or 0 in policy.held
        or not policy.protected
    ):
        return True
    newer = [p for p in counted if p.number > point.number]
    if len(newer) < retention.last:
        return True
    if retention.days and now_ns - point.received_at_ns < retention.days * DAY_NS:
        return True
    for rule in ("hourly", "daily", "weekly", "monthly", "yearly"):
        mine = period(point, rule, zone)
        later = {period(p, rule, zone) for p in counted if period(p, rule, zone) > mine}
        is_newest = all(period(p, rule, zone) != mine for p in newer)
        if is_newest and len(later) < getattr(retention, rule):
            return True
    if not retention.log_window_s:
        return False
    start_ns = now_ns - retention.log_window_s * SECOND_NS
    before = [p.number for p in counted if p.received_at_ns <= start_ns]
    base = max(before) if before else min(p.number for p in counted)
    return point.received_at_ns > start_ns or point.number == base


@settings(max_examples=300, deadline=None)
@given(points=histories(), policy=policies, now_ns=nows)
def test_the_rules_keep_what_the_oracle_keeps(
    points: list[Point], policy: Policy, now_ns: int
) -> None:
    found = kept(points, [policy], now_ns=now_ns)
    assert list(found.rules) == [p.number for p in points if oracle(points, policy, now_ns, p)]


# Laws


@settings(max_examples=200, deadline=None)
@given(points=histories(), policy=policies, more=retentions, now_ns=nows)
def test_a_rule_that_is_added_never_drops_more(
    points: list[Point], policy: Policy, more: Retention, now_ns: int
) -> None:
    before = kept(points, [policy], now_ns=now_ns)
    rules = msgspec.structs.asdict(policy.retention)
    larger = Retention(**{name: max(n, getattr(more, name)) for name, n in rules.items()})
    wider = msgspec.structs.replace(policy, retention=larger)
    assert before.rules.keys() <= kept(points, [wider], now_ns=now_ns).rules.keys()
    both = kept(points, [policy, Policy(retention=more)], now_ns=now_ns)
    assert before.rules.keys() <= both.rules.keys()


@settings(max_examples=200, deadline=None)
@given(points=histories(), policy=policies, now_ns=nows, later_s=st.integers(0, 100 * 86_400))
def test_what_is_let_go_is_let_go_later_too(
    points: list[Point], policy: Policy, now_ns: int, later_s: int
) -> None:
    now = kept(points, [policy], now_ns=now_ns).rules.keys()
    later = kept(points, [policy], now_ns=now_ns + later_s * SECOND_NS).rules.keys()
    assert later <= now


@settings(max_examples=200, deadline=None)
@given(points=histories(), policy=policies, now_ns=nows)
def test_what_is_kept_is_kept_once_the_rest_is_gone(
    points: list[Point], policy: Policy, now_ns: int
) -> None:
    before = kept(points, [policy], now_ns=now_ns)
    left = [point for point in points if point.number in before.rules]
    assert kept(left, [policy], now_ns=now_ns) == before


@settings(max_examples=200, deadline=None)
@given(points=histories(), policy=policies, now_ns=nows, data=st.data())
def test_the_last_good_one_and_the_newest_are_always_kept(
    points: list[Point], policy: Policy, now_ns: int, data: st.DataObject
) -> None:
    deleted = {
        point.number: now_ns + data.draw(st.sampled_from([-1, 1]))
        for point in points
        if data.draw(st.sampled_from([False, False, True]))
    }
    found = kept(points, [policy], now_ns=now_ns, deleted=deleted)
    assert points[-1].number in found.rules
    standing = [p.number for p in points if p.number not in deleted]
    good = [p.number for p in points if p.number in standing and not (p.partial or p.damaged)]
    assert not good or max(good) in found.rules
    # A delete that is not due yet changes nothing for what stays, and can still be taken back.
    undone = kept(points, [policy], now_ns=now_ns)
    waiting = {n: due for n, due in deleted.items() if due > now_ns}
    with_waiting = kept(points, [policy], now_ns=now_ns, deleted=waiting)
    assert undone.rules.keys() <= with_waiting.rules.keys()
    assert waiting.keys() <= with_waiting.rules.keys()


@settings(max_examples=100, deadline=None)
@given(points=histories(), policy=policies, now_ns=nows)
def test_logs_reach_back_to_a_full_that_is_kept(
    points: list[Point], policy: Policy, now_ns: int
) -> None:
    found = kept(points, [policy], now_ns=now_ns)
    window_ns = policy.retention.log_window_s * SECOND_NS
    if not window_ns or not any(p.received_at_ns <= now_ns for p in points):
        assert (found.logs_base, found.logs_from_ns) == (0, 0)
        return
    assert "log_window" in found.rules[found.logs_base]
    oldest_ns = min(p.received_at_ns for p in points)
    assert found.logs_from_ns <= now_ns - window_ns or oldest_ns > now_ns - window_ns


# Cases


def hours(*at: float) -> list[Point]:
    return [Point(n, START_NS + int(h * HOUR_NS)) for n, h in enumerate(at, start=1)]


def numbers(found: Kept, rule: str) -> list[int]:
    return [number for number, rules in found.rules.items() if rule in rules]


def keep(points: list[Point], now_h: float, zone: str = "UTC", **rules: int) -> Kept:
    policy = Policy(retention=Retention(**rules), timezone=zone)
    return kept(points, [policy], now_ns=START_NS + int(now_h * HOUR_NS))


def test_the_default_is_that_of_the_type() -> None:
    assert resolved(Retention(), "files") == Retention(days=7, daily=64)
    assert resolved(Retention(), "postgres") == Retention(days=7, daily=512)
    assert resolved(Retention(days=3), "files") == Retention(days=3)


def test_the_hour_that_comes_twice_is_two_hours() -> None:
    # 2026-10-25 in Berlin: 02:30 summer time is 00:30 UTC, 02:30 winter time 01:30 UTC.
    night = (datetime(2026, 10, 25, tzinfo=UTC) - START) / timedelta(hours=1)
    points = hours(night + 0.4, night + 0.5, night + 1.4, night + 1.5)
    found = keep(points, night + 9, "Europe/Berlin", hourly=2)
    assert numbers(found, "hourly") == [2, 4]


def test_a_day_begins_at_local_midnight_and_ends_an_hour_late_when_clocks_are_set() -> None:
    day = (datetime(2026, 10, 25, tzinfo=UTC) - START) / timedelta(hours=1)
    # In Berlin the 25th lasts from 22:00 UTC of the 24th to 23:00 UTC of the 25th.
    points = hours(day - 2.1, day - 1.9, day + 22.9, day + 23.1)
    assert numbers(keep(points, day + 99, "Europe/Berlin", daily=3), "daily") == [1, 3, 4]
    assert numbers(keep(points, day + 99, "UTC", daily=3), "daily") == [2, 4]


def test_a_period_without_a_point_takes_nobodys_place() -> None:
    points = hours(0, 24, 24 * 9, 24 * 200)
    assert numbers(keep(points, 24 * 300, daily=3), "daily") == [2, 3, 4]
    assert numbers(keep(points, 24 * 300, yearly=9), "yearly") == [3, 4]


def test_the_same_month_of_two_years_is_two_months() -> None:
    points = hours(0, 24 * 365, 24 * 366)
    assert numbers(keep(points, 24 * 400, monthly=2), "monthly") == [1, 3]


def test_the_last_good_one_is_looked_for_among_those_that_are_not_deleted() -> None:
    points = [Point(1, 1), Point(2, 2), Point(3, 3), Point(4, 4, partial=True)]
    policy = Policy(retention=Retention(last=1))
    found = kept(points, [policy], now_ns=9, deleted={3: 8})
    assert numbers(found, "last good") == [2, 4]
    damaged = [*points[:3], Point(4, 4, damaged=True)]
    assert list(kept(damaged, [policy], now_ns=9).rules) == [3, 4]


def test_points_in_between_are_let_go() -> None:
    found = keep(hours(0, 1, 2, 3, 24, 25, 26), 27, daily=2, last=1)
    assert list(found.rules) == [4, 7]
    assert found.rules[7] == ["last", "daily", "newest", "last good"]


def test_the_log_window_keeps_its_base_and_lets_it_move_on() -> None:
    points = hours(0, 10, 20, 30)
    found = keep(points, 25, log_window_s=8 * 3600)
    assert (list(found.rules), found.logs_base) == ([2, 3, 4], 2)
    assert found.logs_from_ns == points[1].received_at_ns
    assert keep(points, 31, log_window_s=8 * 3600).logs_base == 3
    assert keep(points, 5, log_window_s=8 * 3600).logs_base == 1


def test_points_from_the_future_stay_and_take_nobodys_place() -> None:
    points = [*hours(0, 1, 2), Point(4, START_NS + 365 * DAY_NS), Point(5, START_NS + 3 * HOUR_NS)]
    found = keep(points, 4, last=2)
    assert numbers(found, "last") == [3, 5]
    assert numbers(found, "new") == [4]


def test_deletes_wait_and_then_count() -> None:
    points = hours(0, 1, 2, 3)
    policy = Policy(retention=Retention(last=9), held=(2,))
    now_ns = START_NS + 9 * HOUR_NS
    waiting = dict.fromkeys((1, 2, 4), now_ns + 1)
    found = kept(points, [policy], now_ns=now_ns, deleted=waiting)
    assert numbers(found, "deleted") == [1, 2, 4]
    due = dict.fromkeys((1, 2, 4), now_ns)
    assert list(kept(points, [policy], now_ns=now_ns, deleted=due).rules) == [2, 3, 4]
    found = kept(points, [policy], now_ns=now_ns, deleted=due, leased=[1])
    assert list(found.rules) == [1, 2, 3, 4]
    whole = kept(points, [Policy(retention=Retention(last=1))], now_ns=now_ns, deleted={0: now_ns})
    assert list(whole.rules) == [1, 2, 3, 4]


def test_what_is_leased_spared_or_unprotected_is_kept() -> None:
    points = hours(0, 1, 2, 3)
    policy = Policy(retention=Retention(last=1))
    now_ns = START_NS + 9 * HOUR_NS
    assert list(kept(points, [policy], now_ns=now_ns, leased=[2, 77]).rules) == [2, 4]
    assert list(kept(points, [policy], now_ns=now_ns, leased=None).rules) == [1, 2, 3, 4]
    spared = kept(points, [policy], now_ns=now_ns, spared_until_ns=START_NS + HOUR_NS)
    assert list(spared.rules) == [1, 2, 4]
    free = Policy(protected=False)
    assert list(kept(points, [policy, free], now_ns=now_ns).rules) == [1, 2, 3, 4]
    assert list(kept(points, [free], now_ns=now_ns, deleted={2: now_ns}).rules) == [1, 3, 4]


def test_nothing_is_kept_of_nothing() -> None:
    assert kept([], [Policy()], now_ns=1) == Kept({}, 0, 0)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({"due_count": 0, "force": True, "deleted": True, "overdue": True}, False),
        ({"due_count": 7}, False),
        ({"due_count": 8}, True),
        ({"due_count": 1}, False),
        ({"due_count": 1, "force": True}, True),
        ({"due_count": 1, "deleted": True}, True),
        ({"due_count": 1, "overdue": True}, True),
    ],
)
def test_drops_go_in_groups(case: dict[str, Any], expected: bool) -> None:
    plain = {"kept_count": 64, "overdue": False, "deleted": False, "force": False}
    assert is_worth_dropping(**{**plain, **case}) is expected


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 30)),
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=4),
)
@example([3, 4, 5], [(4, 5)])
def test_damaged_are_those_with_a_damaged_extent(
    points: list[int], ranges: list[tuple[int, int]]
) -> None:
    expected = {n for n in points for born, died in ranges if n in range(born, died)}
    assert damaged_points(points, ranges) == expected
