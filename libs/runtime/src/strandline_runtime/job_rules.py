"""Whether a command is accepted, which state may follow, when to try again: pure rules of jobs."""

from __future__ import annotations

from strandline_contracts.commands import Command
from strandline_contracts.jobs import MAX_ISSUES_IN_JOB, NEXT, Job, State
from strandline_contracts.points import Issue
from strandline_runtime.errors import RuntimeFault

RETRY_FIRST_S = 1.0
RETRY_MAX_S = 60.0
MAX_ISSUE_BYTES_IN_JOB = 64 * 1024
"""A job's record is an event, and must fit one with all its paths."""
MAX_SKEW_NS = 5 * 60 * 1_000_000_000
"""So far may the clock of who commands be ahead of the target's.

Clocks that are kept by NTP differ by far less; and it is half of the shortest time for which a
scheduler's command holds, so one that is refused for a clock can still come in time.
"""


class JobRefused(RuntimeFault):
    """A command that is not carried out."""

    code = "job.refused"


class Known(JobRefused):
    """The job was taken before: a redelivery changes nothing."""

    code = "job.known"


class Older(JobRefused):
    """A job of this source and verb that stands for as late an instant or a later was taken."""

    code = "job.older"
    hint = "The newer one does the same: strandline jobs."


class Future(JobRefused):
    """It stands for an instant that is yet to come by the target's clock: one clock is wrong.

    Taken, it would have every command until then refused as older. The target forgets it: the
    same command is taken when its time has come or the clock is right.
    """

    code = "job.future"
    hint = "The clock of this target, or of who sent the command, is wrong: see timedatectl."
    retryable = True


class Expired(JobRefused):
    """It may not be started any more."""

    code = "job.expired"
    hint = "Its target was down or busy until it was too late: run it again."


class CancelledBefore(JobRefused):
    """Its cancel came first."""

    code = "job.cancelled"


class WrongState(RuntimeFault):
    """A state that may not follow the present one; a fault of the caller."""

    code = "job.wrong_state"


def latest_believed_ns(now_ns: int) -> int:
    """Return the latest instant that a command may stand for, by a target's clock."""
    return now_ns + MAX_SKEW_NS


def check_acceptable(
    command: Command, *, known: bool, newest_ns: int, cancelled: bool, now_ns: int
) -> None:
    """Raise the JobRefused that stands against accepting `command` now, if any.

    `newest_ns` is the latest scheduled instant taken of this source and verb (0: none). An equal
    one is refused too: one instant of one source and verb is one job, whatever its id. But no
    restore stands for another one. A `newest_ns` that is yet to come was taken while a clock was
    wrong, and says nothing: known ids and `not_after_ns` stand against replays meanwhile.
    """
    latest_ns = latest_believed_ns(now_ns)
    if known:
        raise Known(f"job {command.job} is known")
    if command.scheduled_at_ns > latest_ns:
        ahead_s = (command.scheduled_at_ns - now_ns) // 1_000_000_000
        raise Future(f"job {command.job} stands for an instant {ahead_s} s ahead of this clock")
    if command.scheduled_at_ns <= newest_ns <= latest_ns and command.verb != "restore":
        raise Older(f"job {command.job} is older than the newest {command.verb} of its source")
    if cancelled:
        raise CancelledBefore(f"job {command.job} was cancelled before it came")
    if now_ns > command.not_after_ns:
        raise Expired(f"job {command.job} came too late to be started")


def check_move(job: Job, state: State) -> None:
    """Raise WrongState unless `state` may follow the state of `job`."""
    if state not in NEXT[job.state]:
        raise WrongState(f"job {job.job} is {job.state} and cannot become {state}")


def retry_delay_s(attempt: int, jitter: float) -> float:
    """Return the seconds before the attempt after `attempt` (from 1); `jitter` is in 0..1.

    Doubles from 1 s to 60 s, and lies between half of that and all of it.
    """
    full_s = min(RETRY_MAX_S, RETRY_FIRST_S * 2.0 ** min(attempt - 1, 16))
    return full_s * (0.5 + jitter / 2)


def issues_for_record(issues: list[Issue]) -> list[Issue]:
    """Return the first issues, as many as a job's record may hold."""
    kept: list[Issue] = []
    room_bytes = MAX_ISSUE_BYTES_IN_JOB
    for issue in issues[:MAX_ISSUES_IN_JOB]:
        room_bytes -= len(issue.path) + len(issue.code) + len(issue.text.encode()) + 16
        if room_bytes < 0:
            break
        kept.append(issue)
    return kept
