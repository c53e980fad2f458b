"""Leases: who may still be reading what."""

from __future__ import annotations

from strandline_replica_store.store import leases as module
from strandline_replica_store.store.leases import LEASE_S, SEGMENTS, Leases

LEASE_NS = int(LEASE_S * 1e9)


class Clock:
    def __init__(self) -> None:
        self.ns = 10**15

    def __call__(self) -> int:
        return self.ns


def started_long_ago() -> tuple[Leases, Clock]:
    clock = Clock()
    leases = Leases(clock)
    clock.ns += LEASE_NS
    return leases, clock


def test_a_lease_lasts_from_its_first_read_to_a_while_after_its_last() -> None:
    leases, clock = started_long_ago()
    assert leases.leased_points("a") == set()
    leases.take("a", 7, "reader")
    taken_at_ns = clock.ns
    for _ in range(3):
        clock.ns += LEASE_NS - 1
        leases.take("a", 7, "reader")
    assert leases.leased_points("a") == {7}
    assert leases.oldest_taken_at("a") == taken_at_ns
    assert leases.leased_points("b") == set()
    assert leases.oldest_taken_at("b") is None
    assert not leases.ended_since("a", taken_at_ns)
    assert leases.ended_since("a", taken_at_ns - 1)
    clock.ns += LEASE_NS
    assert leases.leased_points("a") == set()
    assert leases.ended_since("a", taken_at_ns)


def test_after_a_start_everything_counts_as_leased() -> None:
    clock = Clock()
    leases = Leases(clock)
    assert leases.leased_points("a") is None
    assert not leases.ended_since("a", clock.ns)
    leases.take("a", 3, "was there before the start")
    clock.ns += LEASE_NS
    leases.take("a", 4, "came later")
    assert leases.leased_points("a") == {4}
    assert leases.ended_since("a", clock.ns - 1)


def test_who_was_there_before_the_start_may_have_read_long_ago() -> None:
    clock = Clock()
    leases = Leases(clock)
    leases.take("a", 3, "reader")
    for _ in range(4):
        clock.ns += LEASE_NS // 2
        leases.take("a", 3, "reader")
    assert leases.oldest_taken_at("a") == 0


def test_a_retirement_of_before_the_host_was_started_counts_as_the_start() -> None:
    leases, clock = started_long_ago()
    assert leases.ended_since("a", clock.ns + 10**18)
    leases.take("a", 1, "reader")
    assert leases.ended_since("a", clock.ns + 10**18)


def test_a_walk_over_segments_holds_segments_but_no_point() -> None:
    leases, clock = started_long_ago()
    leases.take("a", SEGMENTS, "verify")
    assert leases.leased_points("a") == set()
    assert leases.oldest_taken_at("a") == clock.ns


def test_too_many_leases_are_joined_and_none_is_lost() -> None:
    leases, clock = started_long_ago()
    first_ns = clock.ns
    for number in range(3 * module.MAX_LEASES):
        clock.ns += 1
        leases.take("a", number % 5 + 1, f"holder {number}")
    assert len(leases._leases) <= module.MAX_LEASES
    assert leases.leased_points("a") is None
    assert leases.oldest_taken_at("a") == first_ns + 1
