"""The instants of cron expressions in a time zone: pure, all in Unix nanoseconds.

Skipped and doubled hours are as cronsim has them, after Debian's cron: a time that the clock jumps
over is taken at the first instant after the jump, a time that comes twice is taken the first time;
expressions whose minute or hour starts with a star follow real time through both.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from datetime import datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from strandline_scheduler.errors import BadPolicy

SECOND_NS = 1_000_000_000
HOUR_NS = 3600 * SECOND_NS


def check_expression(expression: str) -> str:
    """Return `expression` if cron can have meant it, else raise BadPolicy."""
    try:
        CronSim(expression, datetime(2000, 1, 1, tzinfo=ZoneInfo("UTC")))
    except CronSimError as error:
        raise BadPolicy(f"not a cron expression: {expression!r}: {error}") from error
    if len(expression.split()) != 5:
        raise BadPolicy(f"not a cron expression of five fields: {expression!r}")
    return expression


def cron_instants(expressions: tuple[str, ...], zone: ZoneInfo, after_ns: int) -> Iterator[int]:
    """Give each instant after `after_ns` that any of the expressions names, rising, once."""
    newest = after_ns
    for instant in heapq.merge(*(_instants(each, zone, after_ns) for each in expressions)):
        if instant > newest:
            newest = instant
            yield instant


def newest_instant(
    expressions: tuple[str, ...], zone: ZoneInfo, now_ns: int, reach_ns: int
) -> tuple[int, int | None] | None:
    """Return the newest instant at or before `now_ns`, and the one that follows it.

    None where the last `reach_ns` nanoseconds hold none; the second is None when none follows.
    """
    # Dense expressions are found in the short look back, sparse ones cost little in the long one.
    for look_ns in (HOUR_NS, 48 * HOUR_NS, reach_ns):
        found: int | None = None
        for instant in cron_instants(expressions, zone, now_ns - min(look_ns, reach_ns)):
            if instant > now_ns:
                if found is not None:
                    return found, instant
                break
            found = instant
        else:
            if found is not None:
                return found, None
    return None


def _instants(expression: str, zone: ZoneInfo, after_ns: int) -> Iterator[int]:
    start = datetime.fromtimestamp(after_ns // SECOND_NS, zone)
    for time in CronSim(expression, start):
        instant = int(time.timestamp()) * SECOND_NS
        if instant > after_ns:
            yield instant
