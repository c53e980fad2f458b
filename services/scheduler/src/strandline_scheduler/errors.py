"""The errors of the scheduler."""

from __future__ import annotations

from strandline_contracts.errors import StrandlineError


class SchedulerFault(StrandlineError):
    """The root of what the scheduler raises."""

    code = "scheduler.fault"


class BadPolicy(SchedulerFault):
    """A group's policy that is signed but means nothing: the message says which part."""

    code = "scheduler.bad_policy"
    hint = "Change the group: an interval of 60 s or more, cron expressions, an IANA time zone."


class BadState(SchedulerFault):
    """The scheduler's own file of what it emitted last cannot be read."""

    code = "scheduler.bad_state"
    hint = "Remove the file: at worst, occurrences that were missed while it was down stay missed."
