"""Which recovery points are kept, by which rules, and from when on logs are needed: pure rules.

Time is the store's clock of receipt alone; nothing that an agent says plays a part.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple
from zoneinfo import ZoneInfo

import msgspec

from strandline_contracts.policy import (
    DEFAULT_RETENTION,
    DEFAULT_RETENTION_OF_APPLICATIONS,
    Retention,
)

SECOND_NS = 1_000_000_000
DAY_NS = 86_400 * SECOND_NS
DROP_SHARE = 8
"""Points are dropped when one of so many kept ones is due, ..."""
OVERDUE_NS = DAY_NS
"""... or one has been due for so long: each drop rewrites manifests, so they go in groups."""


class Point(NamedTuple):
    """What the rules know of a recovery point."""

    number: int
    received_at_ns: int
    partial: bool = False
    damaged: bool = False


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What decides about a source's points at a time.

    `retention` is read in `timezone` (an IANA name); `held` are numbers of points, 0 for all; an
    unprotected source keeps all that is not deleted.
    """

    retention: Retention = Retention()
    timezone: str = "UTC"
    held: tuple[int, ...] = ()
    protected: bool = True


class Kept(NamedTuple):
    """What is kept: the rules by number of recovery point, oldest first.

    Logs are needed from the full `logs_base` on, received at `logs_from_ns`; zeros when no policy
    has a log window: then each full needs the logs up to its own stop position, and no more.
    """

    rules: dict[int, list[str]]
    logs_base: int
    logs_from_ns: int


def resolved(retention: Retention, kind: str) -> Retention:
    """Return the retention, or where it says nothing the default of the data source's type."""
    if retention != Retention():
        return retention
    return DEFAULT_RETENTION.get(kind, DEFAULT_RETENTION_OF_APPLICATIONS)


def kept(
    points: Collection[Point],
    policies: Collection[Policy],
    *,
    now_ns: int,
    leased: Collection[int] | None = (),
    deleted: Mapping[int, int] | None = None,
    spared_until_ns: int = -1,
) -> Kept:
    """Return what is kept at `now_ns`: all that any rule of any of `policies` keeps.

    - `last`, `days`, `hourly` to `yearly` as Retention says; a policy's rules add up.
    - `log_window`: every full since the window's start, and the newest at or before it, the base.
      Fulls inside stay so that the base can move on; all logs since the base are needed, older
      fulls that other rules keep need the logs up to their own stop position alone.
    - `newest`: always. `last good`: the newest that is not damaged, and the newest that is neither
      damaged nor partial.
    - `held`; `leased` (None: all of them); `spared`: received until `spared_until_ns`.
    - `new`: what came in the future, by a clock that was wrong then, stays until its time has
      come, and takes nobody's place before.

    `deleted` maps numbers (0: all) to when the delete is due. Until then what is deleted is kept
    and takes nobody's place; after that only newest, held and leased ones are kept of it.
    """
    deleted = deleted or {}
    rules: dict[int, list[str]] = {}

    def keep(rule: str, chosen: Iterable[int]) -> None:
        for number in chosen:
            why = rules.setdefault(number, [])
            if rule not in why:
                why.append(rule)

    def keep_of(rule: str, named: Collection[int]) -> None:
        """Keep those of `named` that there are, 0 for all."""
        if named:
            these, every = set(named), 0 in named
            keep(rule, [p.number for p in points if every or p.number in these])

    standing = [point for point in points if point.number not in deleted]
    counted = sorted((p for p in standing if p.received_at_ns <= now_ns), reverse=True)
    bases: list[Point] = []
    for policy in policies:
        for rule, chosen in _chosen(policy, counted, now_ns):
            keep(rule, chosen)
        keep_of("held", policy.held)
        if not policy.protected:
            keep("unprotected", (point.number for point in standing))
        if policy.retention.log_window_s and counted:
            bases.append(_base(counted, policy.retention.log_window_s, now_ns))
    keep_of("newest", [max((point.number for point in points), default=-1)])
    keep("last good", _last_good(standing))
    keep("new", (point.number for point in standing if point.received_at_ns > now_ns))
    keep("spared", (p.number for p in standing if p.received_at_ns <= spared_until_ns))
    keep_of("leased", (0,) if leased is None else leased)
    keep_of("deleted", (0,) if 0 in deleted else _not_due(deleted, now_ns))
    base = min(bases, key=lambda point: (point.received_at_ns, point.number), default=Point(0, 0))
    return Kept(dict(sorted(rules.items())), base.number, base.received_at_ns)


def _not_due(deleted: Mapping[int, int], now_ns: int) -> set[int]:
    return {number for number, due_at_ns in deleted.items() if due_at_ns > now_ns}


def _chosen(
    policy: Policy, newest_first: Sequence[Point], now_ns: int
) -> Iterator[tuple[str, Iterable[int]]]:
    """Yield each rule of a policy's retention with the numbers that it keeps."""
    retention = policy.retention
    yield "last", [point.number for point in newest_first[: retention.last]]
    if retention.days:
        start_ns = now_ns - retention.days * DAY_NS
        yield "days", [p.number for p in newest_first if p.received_at_ns > start_ns]
    zone = ZoneInfo(policy.timezone)
    for rule, period_of in _PERIODS.items():
        count: int = getattr(retention, rule)
        if count:
            yield rule, _newest_of_periods(newest_first, count, zone, period_of)
    if retention.log_window_s and newest_first:
        start_ns = now_ns - retention.log_window_s * SECOND_NS
        base = _base(newest_first, retention.log_window_s, now_ns)
        inside = [p.number for p in newest_first if p.received_at_ns > start_ns]
        yield "log_window", [*inside, base.number]


def _base(newest_first: Sequence[Point], log_window_s: int, now_ns: int) -> Point:
    """Return the newest full at or before the window's start; where there is none, the oldest."""
    start_ns = now_ns - log_window_s * SECOND_NS
    before = (point for point in newest_first if point.received_at_ns <= start_ns)
    return next(before, newest_first[-1])


def _newest_of_periods(
    newest_first: Sequence[Point], count: int, zone: ZoneInfo, period_of: Callable[[datetime], int]
) -> list[int]:
    """Return the newest point of each of the last `count` periods that have one."""
    newest: dict[int, int] = {}
    for point in newest_first:
        at = datetime.fromtimestamp(point.received_at_ns // SECOND_NS, zone)
        newest.setdefault(period_of(at), point.number)
    return [newest[period] for period in sorted(newest, reverse=True)[:count]]


def _hour(at: datetime) -> int:
    """Return when the local hour began, in Unix seconds: one that comes twice counts twice."""
    return int(at.timestamp()) - 60 * at.minute - at.second


_PERIODS: dict[str, Callable[[datetime], int]] = {
    "hourly": _hour,
    "daily": datetime.toordinal,
    # Day 1 of the calendar was a Monday.
    "weekly": lambda at: (at.toordinal() - 1) // 7,
    "monthly": lambda at: 12 * at.year + at.month,
    "yearly": lambda at: at.year,
}


def _last_good(points: Collection[Point]) -> set[int]:
    sound = [point for point in points if not point.damaged]
    whole = [point for point in sound if not point.partial]
    return {max(good).number for good in (sound, whole) if good}


def is_worth_dropping(
    *, kept_count: int, due_count: int, overdue: bool, deleted: bool, force: bool
) -> bool:
    """Tell whether points that are due are dropped now or wait for more.

    `overdue`: one of them has been due for OVERDUE_NS; `deleted`: an operator wants one gone.
    """
    if not due_count:
        return False
    return force or overdue or deleted or due_count * DROP_SHARE >= kept_count


def damaged_points(numbers: Iterable[int], ranges: Iterable[tuple[int, int]]) -> set[int]:
    """Return which of `numbers` lie in any of `ranges` [born, died) of damaged extents."""
    borns: list[int] = []
    ends: list[int] = []
    for born, died in sorted(ranges):
        if ends and born <= ends[-1]:
            ends[-1] = max(ends[-1], died)
        else:
            borns.append(born)
            ends.append(died)

    def is_damaged(number: int) -> bool:
        at = bisect_right(borns, number)
        return at > 0 and number < ends[at - 1]

    return set(filter(is_damaged, numbers))
