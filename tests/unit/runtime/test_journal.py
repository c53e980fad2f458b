"""The journal: what it accepts, refuses, remembers, and tells through its outbox."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from strandline_contracts.commands import Sync
from strandline_contracts.events import JobChanged
from strandline_contracts.jobs import Failure
from strandline_runtime import outbox
from strandline_runtime.job_rules import (
    MAX_SKEW_NS,
    CancelledBefore,
    Expired,
    Future,
    Known,
    Older,
    WrongState,
)
from strandline_runtime.journal import REMEMBER_NS, Journal, UnknownJob
from support.commands import make_command

T = 1_790_000_000_000_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    made = Journal(path, site="hq", origin="agent-web-1")
    yield made
    made.close()


def told(journal: Journal) -> list[tuple[str, int, str]]:
    """Return (job, number, state) of the events in the outbox."""
    events = journal.on_database(lambda conn: [e for _, e in outbox.pending(conn, 1000)])
    found: list[tuple[str, int, str]] = []
    for event in events:
        assert isinstance(event.data, JobChanged)
        assert event.verb == event.data.job.state
        found.append((event.data.job.job, event.number, event.verb))
    return found


def test_a_job_from_accepted_to_durable(journal: Journal) -> None:
    command = make_command("j1", at_ns=T)
    job = journal.accept(command, T + 5)
    assert (job.state, job.attempt, job.accepted_at_ns) == ("accepted", 0, T + 5)
    assert journal.get("j1") == job
    assert journal.command("j1") == command
    journal.move("j1", "running", T + 6, attempt=1)
    journal.move("j1", "shipped", T + 7)
    done = journal.move("j1", "durable", T + 8, point=3, detail="x")
    assert (done.state, done.point, done.detail, done.updated_at_ns) == ("durable", 3, "x", T + 8)
    assert journal.unfinished() == []
    assert journal.recent() == [done]
    assert told(journal) == [
        ("j1", 1, "accepted"),
        ("j1", 2, "running"),
        ("j1", 3, "shipped"),
        ("j1", 4, "durable"),
    ]


def test_the_known_and_the_older_are_refused(journal: Journal) -> None:
    journal.accept(make_command("j1", at_ns=T), T)
    with pytest.raises(Known):
        journal.accept(make_command("j1", at_ns=T + 9), T)
    assert len(told(journal)) == 1
    for job, at_ns in (("j2a", T), ("j2b", T - 1)):
        with pytest.raises(Older):
            journal.accept(make_command(job, at_ns=at_ns), T)
        # Whoever waits for it hears of it; the newest instant stays the newest.
        older = journal.get(job)
        assert older is not None
        assert older.failure is not None
        assert (older.state, older.failure.code) == ("cancelled", "job.older")
    # Another verb, or another source, has an order of its own.
    journal.accept(make_command("j3", at_ns=T - 1, args=Sync()), T)
    journal.accept(make_command("j4", at_ns=T - 1, source="s2"), T)


def test_one_that_came_too_late_is_recorded_as_expired(journal: Journal) -> None:
    late = make_command("j1", at_ns=T, valid_s=1)
    with pytest.raises(Expired):
        journal.accept(late, T + 2 * 10**9)
    job = journal.get("j1")
    assert job is not None
    assert job.state == "expired"
    assert told(journal) == [("j1", 1, "expired")]
    with pytest.raises(Known):
        journal.accept(late, T)


def test_cancel_before_the_command_comes(journal: Journal) -> None:
    assert journal.request_cancel("j1", T) is None
    with pytest.raises(CancelledBefore):
        journal.accept(make_command("j1", at_ns=T), T)
    job = journal.get("j1")
    assert job is not None
    assert job.state == "cancelled"


def test_cancel_of_an_accepted_a_running_and_an_ended_job(journal: Journal) -> None:
    journal.accept(make_command("j1", at_ns=T), T)
    cancelled = journal.request_cancel("j1", T + 1)
    assert cancelled is not None
    assert cancelled.state == "cancelled"
    journal.accept(make_command("j2", at_ns=T + 1), T)
    journal.move("j2", "running", attempt=1)
    running = journal.request_cancel("j2", T + 2)
    assert running is not None
    assert running.state == "running"
    assert journal.cancel_requested("j2")
    journal.move("j2", "durable")
    assert not journal.cancel_requested("j2")
    assert journal.request_cancel("j2", T + 3) == journal.get("j2")
    assert not journal.cancel_requested("j2")


def test_no_state_but_the_next(journal: Journal) -> None:
    journal.accept(make_command("j1", at_ns=T), T)
    with pytest.raises(WrongState):
        journal.move("j1", "durable")
    journal.move("j1", "running", attempt=1)
    journal.move("j1", "failed", failure=Failure(code="c", message="m"))
    for state in ("running", "durable", "cancelled"):
        with pytest.raises(WrongState):
            journal.move("j1", state)
    with pytest.raises(UnknownJob):
        journal.move("none", "running")


def test_all_is_there_after_a_restart(journal: Journal, path: Path) -> None:
    journal.accept(make_command("j1", at_ns=T), T)
    journal.accept(make_command("j2", at_ns=T, source="s2"), T + 1)
    journal.move("j2", "running", attempt=1)
    journal.request_cancel("j9", T)
    journal.close()
    again = Journal(path, site="hq", origin="agent-web-1")
    assert [job.job for job in again.unfinished()] == ["j1", "j2"]
    assert again.cancel_requested("j9")
    with pytest.raises(Known):
        again.accept(make_command("j1", at_ns=T), T)
    again.move("j2", "durable")
    assert [number for _, number, _ in told(again)] == [1, 1, 2, 3]
    again.close()


def test_ended_jobs_are_remembered_30_days_and_older_ones_refused_for_ever(
    journal: Journal, path: Path
) -> None:
    first = make_command("j1", at_ns=T)
    journal.accept(first, T)
    journal.move("j1", "running", T)
    journal.move("j1", "durable", T)
    journal.close()
    for now_ns, remembered in ((T + REMEMBER_NS - 1, True), (T + REMEMBER_NS + 1, False)):
        again = Journal(path, site="hq", origin="agent-web-1")
        again.accept(make_command(f"x{now_ns}", at_ns=now_ns, source="s2"), now_ns)
        assert (again.get("j1") is not None) is remembered
        again.close()
    again = Journal(path, site="hq", origin="agent-web-1")
    with pytest.raises(Older):
        again.accept(first, T)
    again.close()


YEAR_NS = 365 * 86_400 * 10**9


def test_one_from_the_future_leaves_no_trace(journal: Journal) -> None:
    wrong = make_command("j1", at_ns=T + YEAR_NS)
    with pytest.raises(Future) as refused:
        journal.accept(wrong, T)
    assert (refused.value.code, refused.value.retryable) == ("job.future", True)
    assert journal.get("j1") is None
    assert told(journal) == []
    journal.accept(make_command("j2", at_ns=T + 1), T)
    # The clock was the target's: the same command is taken when that is right.
    assert journal.accept(wrong, T + YEAR_NS - MAX_SKEW_NS).state == "accepted"


def test_an_instant_taken_while_a_clock_was_wrong_does_no_harm(journal: Journal) -> None:
    old = make_command("old", at_ns=T - 60 * 10**9, valid_s=1)
    journal.accept(make_command("before", at_ns=T - 1), T)
    # The target's own clock, and that of who commands, were a year ahead.
    wrong = make_command("wrong", at_ns=T + YEAR_NS)
    journal.accept(wrong, T + YEAR_NS)
    # What came before is refused all the same: by its id, or by its end.
    with pytest.raises(Known):
        journal.accept(make_command("before", at_ns=T - 1), T)
    with pytest.raises(Known):
        journal.accept(wrong, T)
    with pytest.raises(Expired):
        journal.accept(old, T)
    journal.accept(make_command("j1", at_ns=T), T)
    # From here on the newest is again the newest.
    with pytest.raises(Older):
        journal.accept(make_command("j0", at_ns=T - 1), T)
    journal.accept(make_command("j2", at_ns=T + 1), T + 1)
    with pytest.raises(Older):
        journal.accept(make_command("j3", at_ns=T + 1), T + YEAR_NS - MAX_SKEW_NS)


def test_threads_take_turns(journal: Journal) -> None:
    """Of twenty threads with the same job one has it accepted."""
    outcomes: list[str] = []

    def accept() -> None:
        try:
            journal.accept(make_command("j1", at_ns=T), T)
            outcomes.append("accepted")
        except Known:
            outcomes.append("known")

    threads = [threading.Thread(target=accept) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["accepted"] + ["known"] * 19


def test_a_failed_transaction_leaves_nothing(journal: Journal) -> None:
    def breaks(conn: sqlite3.Connection) -> None:
        outbox.next_number(conn, "job", "s1")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        journal.on_database(breaks)
    assert journal.on_database(lambda conn: outbox.next_number(conn, "job", "s1")) == 1
    assert journal.on_database(lambda conn: outbox.next_number(conn, "point", "s1")) == 1
    assert journal.on_database(lambda conn: outbox.next_number(conn, "job", "s1")) == 2
