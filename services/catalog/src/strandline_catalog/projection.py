"""What events mean to the catalog: pure.

Events come more than once and in any order. So a fold of them picks by what they say and not by
when they came, and their numbers tell what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from strandline_contracts.errors import BadMessage, BadName
from strandline_contracts.events import (
    ClockDoubted,
    DamageFound,
    DamageRepaired,
    Event,
    JobChanged,
    PointCommitted,
    PointsDropped,
    ReplicaDeleted,
    ReplicaVerified,
    SourceChanged,
    accept_event,
)
from strandline_contracts.jobs import ENDED, Job, State
from strandline_contracts.names import token
from strandline_contracts.points import RecoveryPoint
from strandline_contracts.reading import ReplicaState
from strandline_contracts.subjects import NO_SOURCE

_BIGINT_END = 2**63
_RANK: dict[State, int] = {"accepted": 0, "running": 1, "shipped": 2}
_RANK_ENDED = 3

Reason = Literal["skipped", "restarted", "stream"]


class Standing(NamedTuple):
    """Orders the states of one job; a greater one is newer (jobs.NEXT)."""

    ended: bool
    attempt: int
    rank: int
    updated_at_ns: int


class Teller(NamedTuple):
    """Who numbers events: an origin counts those of each noun about each source by itself."""

    origin: str
    noun: str
    source: str


class Gap(NamedTuple):
    """Events `first` to `last` (None: nobody knows) of `teller` that did not come."""

    teller: Teller
    first: int
    last: int | None
    reason: Reason


class Arrival(NamedTuple):
    """An event and its sequence in the stream."""

    sequence: int
    event: Event


class SeenPoint(NamedTuple):
    """A recovery point and the store that told of it."""

    store: str
    point: RecoveryPoint


class Gone(NamedTuple):
    """A recovery point that a store has let go; number 0 stands for all that it had."""

    source: str
    store: str
    number: int


@dataclass(slots=True)
class Fold:
    """What a batch of events comes to.

    `gone` tells when each went, by the store's clock; `stores` are those whose replicas are in
    another state than before: they are asked which.
    """

    points: dict[tuple[str, int], SeenPoint] = field(default_factory=dict)
    gone: dict[Gone, int] = field(default_factory=dict)
    stores: set[str] = field(default_factory=set)
    jobs: dict[tuple[str, str], Job] = field(default_factory=dict)
    damages: dict[str, Event] = field(default_factory=dict)
    numbers: dict[Teller, int] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    sources_changed: bool = False


class _Telling(NamedTuple):
    """What an event must be: its noun, its verbs, and whether its origin may tell it."""

    noun: str
    verbs: tuple[str, ...]
    allowed: bool
    integers: list[int]


def read_event(data: bytes, subject: str) -> Event:
    """Return the event that `data` holds if its origin may tell it, else raise BadMessage."""
    event = accept_event(data, subject)
    told = _telling(event)
    if not told.allowed or event.noun != told.noun or event.verb not in told.verbs:
        raise BadMessage(f"{event.origin} may not tell {type(event.data).__name__} on {subject}")
    integers = (event.number, event.time_ns, *told.integers)
    if event.number < 1 or not all(0 <= each < _BIGINT_END for each in integers):
        raise BadMessage(f"an event with a number out of range on {subject}")
    return event


def _telling(event: Event) -> _Telling:
    role, _, instance = event.origin.partition("-")
    data = event.data
    if isinstance(data, JobChanged):
        job = data.job
        _check_token(job.job)
        allowed = (job.role, job.instance) == (role, instance) and job.source == event.source
        integers = [job.attempt, job.accepted_at_ns, job.updated_at_ns, job.scheduled_at_ns]
        return _Telling("job", (job.state,), allowed, integers)
    if isinstance(data, SourceChanged):
        allowed = role == "operator" and data.source.id == event.source
        return _Telling("source", (event.verb,), allowed, [])
    return _store_telling(event, is_store=role == "store")


def _store_telling(event: Event, *, is_store: bool) -> _Telling:
    data = event.data
    if isinstance(data, ClockDoubted):
        allowed = is_store and event.source == NO_SOURCE
        return _Telling("clock", ("doubted", "trusted"), allowed, [])
    is_store = is_store and event.source != NO_SOURCE
    if isinstance(data, PointCommitted):
        allowed = is_store and data.point.source == event.source
        return _Telling("point", ("committed",), allowed, _integers_of_point(data.point))
    if isinstance(data, PointsDropped):
        # Number 0 is no recovery point: in `Gone` it stands for all of them.
        allowed = is_store and all(number > 0 for number in data.points)
        return _Telling("point", ("dropped",), allowed, data.points)
    if isinstance(data, ReplicaDeleted):
        return _Telling("replica", ("deleted", "undeleted", "purged"), is_store, data.points)
    if isinstance(data, ReplicaVerified):
        return _Telling("replica", ("verified",), is_store, [])
    _check_token(event.id)
    verb = "repaired" if isinstance(data, DamageRepaired) else "found"
    return _Telling("damage", (verb,), is_store, [])


def check_point(point: RecoveryPoint, source: str) -> RecoveryPoint:
    """Return a point that a store listed for `source`, else raise BadMessage."""
    if point.source != source or not all(
        0 <= each < _BIGINT_END for each in _integers_of_point(point)
    ):
        raise BadMessage(f"a point that is none of {source}")
    return point


def check_replicas(replicas: Sequence[ReplicaState]) -> None:
    """Raise BadMessage unless these are replicas as a store lists them: rising by source."""
    sources = [replica.source for replica in replicas]
    for source in sources:
        _check_token(source)
    if sources != sorted(set(sources)) or any("\0" in replica.name for replica in replicas):
        raise BadMessage("replicas that do not rise, or names that cannot be")


def standing(job: Job) -> Standing:
    """Return where `job` stands among the states of the same job.

    An end is final. A later attempt is newer than any state of an earlier one, and within an
    attempt a later state than an earlier one, whatever the clocks say.
    """
    return Standing(
        job.state in ENDED, job.attempt, _RANK.get(job.state, _RANK_ENDED), job.updated_at_ns
    )


def fold(arrivals: Iterable[Arrival], position: int, numbers: Mapping[Teller, int]) -> Fold:
    """Return what `arrivals` come to where the stream was counted up to sequence `position`.

    `numbers` has the last number of each teller; none means 0. Redelivered messages (their
    sequence is at most `position`) are folded, and count for nothing.
    """
    found = Fold()
    for sequence, event in sorted(arrivals, key=lambda arrival: arrival.sequence):
        if sequence > position:
            position = sequence
            teller = Teller(event.origin, event.noun, event.source)
            last = found.numbers.get(teller, numbers.get(teller, 0))
            gap = gap_before(teller, last, event.number)
            if gap is not None:
                found.gaps.append(gap)
            if gap is not None or event.number > last:
                found.numbers[teller] = event.number
        _put(found, event)
    return found


def gap_before(teller: Teller, last: int, number: int) -> Gap | None:
    """Return what is missing when `number` follows `last`.

    A number that came already is a double from an outbox, which repeats its last one. A 1 after
    more than one is no double: the teller has lost its count, and with it nobody knows what.
    """
    if number > last + 1:
        return Gap(teller, last + 1, number - 1, "skipped")
    if number == 1 and last > 1:
        return Gap(teller, last + 1, None, "restarted")
    return None


def _put(found: Fold, event: Event) -> None:
    data = event.data
    store = event.origin.removeprefix("store-")
    if isinstance(data, PointCommitted):
        key = (data.point.source, data.point.number)
        held = found.points.get(key)
        if held is None or held.point.received_at_ns < data.point.received_at_ns:
            found.points[key] = SeenPoint(store, data.point)
    elif isinstance(data, JobChanged):
        job_key = (event.origin, data.job.job)
        known = found.jobs.get(job_key)
        if known is None or standing(known) < standing(data.job):
            found.jobs[job_key] = data.job
    elif isinstance(data, SourceChanged):
        found.sources_changed = True
    elif isinstance(data, PointsDropped):
        _put_gone(found, event, store, data.points)
    elif not isinstance(data, ClockDoubted):
        found.stores.add(store)
        if isinstance(data, DamageFound | DamageRepaired):
            found.damages[event.id] = event
        elif isinstance(data, ReplicaDeleted) and event.verb == "purged":
            _put_gone(found, event, store, data.points or [0])


def _put_gone(found: Fold, event: Event, store: str, numbers: list[int]) -> None:
    for number in numbers:
        gone = Gone(event.source, store, number)
        found.gone[gone] = max(event.time_ns, found.gone.get(gone, 0))


def _integers_of_point(point: RecoveryPoint) -> list[int]:
    return [point.number, point.taken_at_ns, point.received_at_ns, point.stored_bytes]


def _check_token(name: str) -> None:
    try:
        token(name)
    except BadName as error:
        raise BadMessage(error.message) from error
