"""Which occurrences of which schedules are due: the scheduler's whole judgement, pure.

`last` says for each schedule of a source up to which instant it has been dealt with. Of the
occurrences since then only the newest counts (the missed-run rule): earlier ones would bring a
source to states that nobody can have any more. All times are Unix nanoseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from blake3 import blake3

from strandline_contracts.names import scheduled_job_id
from strandline_contracts.policy import Group, Source
from strandline_contracts.streams import COMMAND_MAX_AGE_NS
from strandline_scheduler.cron import SECOND_NS, check_expression, cron_instants, newest_instant
from strandline_scheduler.errors import BadPolicy

Verb = Literal["express_full", "sync"]

MIN_SYNC_S = 60
MAX_SYNC_S = 366 * 86_400
MAX_CRON_EXPRESSIONS = 64
MAX_JITTER_S = 900
"""Sources of one interval are spread over it, or over its first so many seconds."""
MIN_VALID_NS = 600 * SECOND_NS
"""A command may be started for so long at least: more than clocks of servers differ."""
MAX_VALID_NS = COMMAND_MAX_AGE_NS


@dataclass(frozen=True, slots=True)
class Schedule:
    """A group's policy, checked."""

    sync_every_s: int
    express_full: tuple[str, ...]
    zone: ZoneInfo


class Key(NamedTuple):
    """One schedule of one source."""

    source: str
    verb: Verb


@dataclass(frozen=True, slots=True)
class Policies:
    """The sources that are protected, and the schedules of groups by name."""

    sources: tuple[Source, ...] = ()
    schedules: Mapping[str, Schedule] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A thing to be done once: `verb` for `source`, standing for `at_ns`."""

    source: Source
    verb: Verb
    at_ns: int
    not_after_ns: int

    @property
    def key(self) -> Key:
        return Key(self.source.id, self.verb)

    @property
    def job(self) -> str:
        return scheduled_job_id(self.source.id, self.verb, self.at_ns)


def read_schedule(group: Group) -> Schedule:
    """Return the schedule that `group` means, else raise BadPolicy."""
    if group.sync_every_s and not MIN_SYNC_S <= group.sync_every_s <= MAX_SYNC_S:
        raise BadPolicy(f"group {group.name!r}: a sync interval of {group.sync_every_s} s")
    if len(group.express_full) > MAX_CRON_EXPRESSIONS:
        raise BadPolicy(
            f"group {group.name!r}: more than {MAX_CRON_EXPRESSIONS} express-full times"
        )
    try:
        zone = ZoneInfo(group.timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise BadPolicy(f"group {group.name!r}: no time zone {group.timezone!r}") from error
    expressions = tuple(check_expression(each) for each in group.express_full)
    return Schedule(sync_every_s=group.sync_every_s, express_full=expressions, zone=zone)


def settle(policies: Policies, last: Mapping[Key, int], now_ns: int) -> dict[Key, int]:
    """Return `last` for the schedules that there are now.

    A new one begins now: what it would have done before it was made is not missed. One dealt with
    until later than now had a wrong clock: it goes on from now, and doubles have the same job id.
    """
    keys = [
        key
        for source in policies.sources
        for key, present in _keys(source, policies.schedules.get(source.group))
        if present
    ]
    return {key: min(last.get(key, now_ns), now_ns) for key in keys}


def due(policies: Policies, last: Mapping[Key, int], now_ns: int) -> list[Occurrence]:
    """Return the newest occurrence of each schedule since `last` that may still be started."""
    express_full = {
        name: newest_instant(schedule.express_full, schedule.zone, now_ns, MAX_VALID_NS)
        for name, schedule in policies.schedules.items()
    }
    found = []
    for source in policies.sources:
        schedule = policies.schedules.get(source.group)
        if schedule is None:
            continue
        if schedule.sync_every_s:
            found.append(_newest_sync(source, schedule.sync_every_s, now_ns))
        if (newest := express_full[source.group]) is not None:
            at_ns, next_ns = newest
            until_ns = _not_after(at_ns, next_ns if next_ns is not None else at_ns + MAX_VALID_NS)
            found.append(Occurrence(source, "express_full", at_ns, until_ns))
    return sorted(
        (
            each
            for each in found
            if last.get(each.key, now_ns) < each.at_ns and _fresh(each, now_ns)
        ),
        key=lambda each: each.at_ns,
    )


def next_ns(policies: Policies, now_ns: int) -> int | None:
    """Return the first instant after `now_ns` at which something becomes due."""
    used = {source.group for source in policies.sources}
    instants = [
        instant
        for name, schedule in policies.schedules.items()
        if name in used
        for instant in [next(cron_instants(schedule.express_full, schedule.zone, now_ns), None)]
        if instant is not None
    ]
    for source in policies.sources:
        schedule = policies.schedules.get(source.group)
        if schedule is not None and schedule.sync_every_s:
            newest = _newest_sync(source, schedule.sync_every_s, now_ns)
            instants.append(newest.at_ns + schedule.sync_every_s * SECOND_NS)
    return min(instants, default=None)


def jitter_s(source: str, every_s: int) -> int:
    """Return by how many seconds the syncs of `source` come later than its interval's start."""
    return int.from_bytes(blake3(source.encode()).digest(length=8)) % min(every_s, MAX_JITTER_S)


def _keys(source: Source, schedule: Schedule | None) -> list[tuple[Key, bool]]:
    if schedule is None:
        return []
    return [
        (Key(source.id, "sync"), bool(schedule.sync_every_s)),
        (Key(source.id, "express_full"), bool(schedule.express_full)),
    ]


def _newest_sync(source: Source, every_s: int, now_ns: int) -> Occurrence:
    every_ns = every_s * SECOND_NS
    offset_ns = jitter_s(source.id, every_s) * SECOND_NS
    at_ns = (now_ns - offset_ns) // every_ns * every_ns + offset_ns
    return Occurrence(source, "sync", at_ns, _not_after(at_ns, at_ns + every_ns))


def _not_after(at_ns: int, next_ns: int) -> int:
    """An occurrence holds until the next one takes its place, within the bounds."""
    return at_ns + min(max(next_ns - at_ns, MIN_VALID_NS), MAX_VALID_NS)


def _fresh(occurrence: Occurrence, now_ns: int) -> bool:
    return now_ns < occurrence.not_after_ns
