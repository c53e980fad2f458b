"""What events come to: the same however they came, and nothing that their origin may not tell."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strandline_catalog.projection import (
    Arrival,
    Gap,
    Teller,
    fold,
    gap_before,
    read_event,
    standing,
)
from strandline_contracts.codec import encode
from strandline_contracts.errors import BadMessage
from strandline_contracts.events import (
    ClockDoubted,
    DamageFound,
    DamageRepaired,
    Data,
    Event,
    JobChanged,
    PointCommitted,
    PointsDropped,
    ReplicaDeleted,
    ReplicaVerified,
    SourceChanged,
)
from strandline_contracts.jobs import ENDED, NEXT, Job, State
from support.examples import POINT, SOURCE, THE_JOB, THE_SOURCE

TELLER = Teller("agent-web-1", "job", SOURCE)


def event(origin: str, noun: str, verb: str, data: Data, number: int = 1, **changes: Any) -> Event:
    made = Event(
        id=f"{origin}-{number}",
        site="hq",
        origin=origin,
        noun=noun,
        verb=verb,
        source=SOURCE,
        number=number,
        time_ns=5,
        data=data,
    )
    return msgspec.structs.replace(made, **changes)


def job_event(state: State, number: int = 1, **changes: Any) -> Event:
    job = msgspec.structs.replace(THE_JOB, state=state, **changes)
    return event("agent-web-1", "job", state, JobChanged(job=job), number)


DAMAGE = DamageFound(chunk=1, segment=1, offset=0, reason="digest")
VERIFIED = ReplicaVerified(chunks=1, read_bytes=1, damaged=0, began_at_ns=1)
DROPPED = PointsDropped(points=[1], reason="retention")
GOOD = [
    event("store-store-1", "point", "committed", PointCommitted(point=POINT)),
    job_event("running"),
    event("operator-1", "source", "protected", SourceChanged(source=THE_SOURCE)),
    event("store-store-1", "damage", "found", DAMAGE),
    event("store-store-1", "damage", "repaired", DamageRepaired(chunk=1, by="agent-web-1")),
    event("store-store-1", "point", "dropped", PointsDropped(points=[1, 2], reason="retention")),
    event("store-store-1", "replica", "deleted", ReplicaDeleted(points=[3], due_at_ns=9)),
    event("store-store-1", "replica", "undeleted", ReplicaDeleted()),
    event("store-store-1", "replica", "purged", ReplicaDeleted()),
    event("store-store-1", "replica", "verified", VERIFIED),
    event("store-store-1", "clock", "doubted", ClockDoubted(reason="it jumped"), source="-"),
]
BAD = [
    event("agent-web-1", "point", "committed", PointCommitted(point=POINT)),
    event("agent-web-2", "job", "running", job_event("running").data),
    event("store-web-1", "job", "running", job_event("running").data),
    event("agent-web-1", "job", "durable", job_event("running").data),
    event("store-store-1", "point", "gone", PointCommitted(point=POINT)),
    event("agent-web-1", "damage", "found", DAMAGE),
    event("store-store-1", "damage", "repaired", DAMAGE),
    event("agent-web-1", "damage", "repaired", DamageRepaired(chunk=1, by="agent-web-1")),
    event("agent-web-1", "point", "dropped", DROPPED),
    event("store-store-1", "point", "committed", DROPPED),
    event("store-store-1", "point", "dropped", DROPPED, source="-"),
    event("store-store-1", "point", "dropped", PointsDropped(points=[0], reason="retention")),
    event("store-store-1", "point", "dropped", PointsDropped(points=[2**63], reason="retention")),
    event("agent-web-1", "replica", "purged", ReplicaDeleted()),
    event("store-store-1", "replica", "gone", ReplicaDeleted()),
    event("store-store-1", "replica", "deleted", VERIFIED),
    event("store-store-1", "clock", "doubted", ClockDoubted()),
    event("agent-web-1", "clock", "doubted", ClockDoubted(), source="-"),
    event("agent-web-1", "source", "protected", SourceChanged(source=THE_SOURCE)),
    event("store-store-1", "point", "committed", PointCommitted(point=POINT), source="other"),
    job_event("running", number=0),
    job_event("running", number=2**63),
    job_event("running", attempt=2**63),
    job_event("running", updated_at_ns=-1),
    job_event("running", job="nul\0"),
    job_event("running", job="x" * 65),
    event(
        "store-store-1",
        "point",
        "committed",
        PointCommitted(point=msgspec.structs.replace(POINT, number=2**63)),
    ),
]


@pytest.mark.parametrize("good", GOOD, ids=lambda each: f"{each.noun}.{each.verb}")
def test_an_event_of_its_origin_is_read(good: Event) -> None:
    assert read_event(encode(good), good.subject()) == good


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_what_an_origin_may_not_tell_is_refused(bad: Event) -> None:
    with pytest.raises(BadMessage):
        read_event(encode(bad), bad.subject())


def test_foreign_bytes_and_another_subject_are_refused() -> None:
    with pytest.raises(BadMessage):
        read_event(b"+ACK", GOOD[0].subject())
    with pytest.raises(BadMessage):
        read_event(encode(GOOD[0]), GOOD[0].subject().replace("store-1", "store-2"))


def histories() -> st.SearchStrategy[list[Job]]:
    """Give the states of a job as its journal moves through them, the clock going as it likes."""

    @st.composite
    def history(draw: st.DrawFn) -> list[Job]:
        state: State = "accepted"
        attempt, made = 1, []
        for _ in range(draw(st.integers(1, 8))):
            made.append(
                msgspec.structs.replace(
                    THE_JOB, state=state, attempt=attempt, updated_at_ns=draw(st.integers(1, 9))
                )
            )
            if not NEXT[state]:
                break
            following = draw(st.sampled_from(sorted(NEXT[state])))
            if following == "running" and state != "accepted":
                attempt += 1
            state = following
        return made

    return history()


@settings(max_examples=200, deadline=None)
@given(histories(), st.data())
def test_the_newest_state_of_a_job_stands_in_whatever_order_it_came(
    history: list[Job], data: st.DataObject
) -> None:
    assert all(standing(a) < standing(b) for a, b in itertools.pairwise(history))
    arrivals = [
        Arrival(sequence, event("agent-web-1", "job", job.state, JobChanged(job=job), sequence))
        for sequence, job in enumerate(history, 1)
    ]
    shuffled = data.draw(st.permutations(arrivals + arrivals[: len(arrivals) // 2]))
    found = fold(shuffled, 0, {})
    assert list(found.jobs.values()) == [history[-1]]
    assert (found.numbers, found.gaps) == ({TELLER: len(history)}, [])


def test_an_end_is_final() -> None:
    for ended in ENDED:
        end = msgspec.structs.replace(THE_JOB, state=ended, attempt=1, updated_at_ns=1)
        late = msgspec.structs.replace(THE_JOB, state="running", attempt=9, updated_at_ns=9)
        assert standing(late) < standing(end)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(2, 30), min_size=1, max_size=20))
def test_gaps_are_what_numbers_leave_out(numbers: list[int]) -> None:
    told = sorted(set(numbers))
    arrivals = [Arrival(at, job_event("running", number)) for at, number in enumerate(told, 1)]
    found = fold(arrivals, 0, {})
    lost = [n for gap in found.gaps for n in range(gap.first, (gap.last or 0) + 1)]
    assert sorted(lost + told) == list(range(1, told[-1] + 1))
    assert found.numbers == {TELLER: told[-1]}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=12), st.integers(0, 12))
def test_redelivered_events_count_for_nothing(numbers: list[int], split: int) -> None:
    arrivals = [Arrival(at, job_event("running", number)) for at, number in enumerate(numbers, 1)]
    once = fold(arrivals, 0, {})
    again = fold(arrivals[:split], len(numbers), once.numbers)
    assert (again.numbers, again.gaps) == ({}, [])
    parts = fold(arrivals[:split], 0, {})
    rest = fold(arrivals, min(split, len(numbers)), parts.numbers)
    assert parts.numbers | rest.numbers == once.numbers
    assert parts.gaps + rest.gaps == once.gaps


def test_a_double_is_no_gap_and_a_count_begun_anew_is_one() -> None:
    assert gap_before(TELLER, 7, 7) is None
    assert gap_before(TELLER, 7, 8) is None
    assert gap_before(TELLER, 1, 1) is None
    assert gap_before(TELLER, 7, 9) == Gap(TELLER, 8, 8, "skipped")
    assert gap_before(TELLER, 7, 1) == Gap(TELLER, 8, None, "restarted")
    found = fold([Arrival(1, job_event("running", 1))], 0, {TELLER: 7})
    assert found.numbers == {TELLER: 1}


def test_of_two_points_of_one_number_the_later_received_counts() -> None:
    newer = msgspec.structs.replace(POINT, digest=b"n" * 32, received_at_ns=2**60 * 2)
    events = [
        event("store-store-1", "point", "committed", PointCommitted(point=point), number)
        for number, point in enumerate([newer, POINT], 1)
    ]
    found = fold([Arrival(each.number, each) for each in events], 0, {})
    assert [each.point for each in found.points.values()] == [newer]
