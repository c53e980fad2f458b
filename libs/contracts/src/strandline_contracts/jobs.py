"""A job: one thing that one target does, its states, and what it tells while it runs."""

from __future__ import annotations

from typing import Literal

import msgspec

from strandline_contracts.codec import Message
from strandline_contracts.points import Issue, Totals

State = Literal["accepted", "running", "shipped", "durable", "failed", "cancelled", "expired"]

ENDED: frozenset[State] = frozenset({"durable", "failed", "cancelled", "expired"})

NEXT: dict[State, frozenset[State]] = {
    "accepted": frozenset({"running", "failed", "cancelled", "expired"}),
    "running": frozenset({"running", "shipped", "durable", "failed", "cancelled"}),
    "shipped": frozenset({"running", "durable", "failed", "cancelled"}),
    "durable": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
    "expired": frozenset(),
}
"""From which state a job may go to which. `running` again is a new attempt."""

MAX_ISSUES_IN_JOB = 100
"""A job's record lists so many issues; the manifest of its recovery point has them all."""


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a job failed and what to do."""

    code: str
    message: str
    hint: str = ""
    retryable: bool = False


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A job's record; only its target writes it. Times are Unix nanoseconds."""

    job: str
    source: str
    verb: str
    role: str
    instance: str
    state: State
    attempt: int
    scheduled_at_ns: int
    not_after_ns: int
    accepted_at_ns: int
    updated_at_ns: int
    issued_by: str
    point: int = 0
    """The recovery point that it made, restored or checked; 0 for none."""
    partial: bool = False
    totals: Totals = Totals()
    issues: list[Issue] = []
    failure: Failure | None = None
    detail: str = ""
    """One line for a person: what was done."""


class GetJob(Message, frozen=True, kw_only=True, tag="get_job"):
    """Ask the target of job `job` for its record."""

    job: str


class GotJob(Message, frozen=True, kw_only=True, tag="got_job"):
    job: Job | None = None


class Progress(Message, frozen=True, kw_only=True, tag="progress"):
    """Where a running job stands; may be lost. `total_bytes` is 0 while unknown."""

    job: str
    phase: str
    files: int = 0
    done_bytes: int = 0
    total_bytes: int = 0
    sent_bytes: int = 0
