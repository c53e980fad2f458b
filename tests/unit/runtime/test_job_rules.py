"""The pure rules of jobs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strandline_contracts.jobs import ENDED, MAX_ISSUES_IN_JOB, NEXT
from strandline_contracts.points import Issue
from strandline_runtime.job_rules import (
    MAX_ISSUE_BYTES_IN_JOB,
    MAX_SKEW_NS,
    RETRY_MAX_S,
    CancelledBefore,
    Expired,
    Future,
    JobRefused,
    Known,
    Older,
    check_acceptable,
    issues_for_record,
    retry_delay_s,
)
from support.commands import make_command

COMMAND = make_command("j1", at_ns=1000, valid_s=1e-6)


@pytest.mark.parametrize(
    ("known", "newest_ns", "cancelled", "now_ns", "refusal"),
    [
        (False, 0, False, 2000, None),
        (False, 999, False, 1000, None),
        (True, 0, False, 2000, Known),
        (False, 1000, False, 2000, Older),
        (False, 1001, False, 2000, Older),
        (False, 0, True, 2000, CancelledBefore),
        (False, 0, False, 2001, Expired),
        (True, 2000, True, 9999, Known),
        (False, 2000, True, 9999, Older),
        (False, 0, False, 1000 - MAX_SKEW_NS, None),
        (False, 0, True, 999 - MAX_SKEW_NS, Future),
        (True, 0, False, 999 - MAX_SKEW_NS, Known),
        # A newest instant that is yet to come says nothing.
        (False, 1500 + MAX_SKEW_NS, False, 1500, Older),
        (False, 1501 + MAX_SKEW_NS, False, 1500, None),
        (True, 1501 + MAX_SKEW_NS, False, 1500, Known),
        (False, 1501 + MAX_SKEW_NS, False, 2001, Older),
        (False, 2002 + MAX_SKEW_NS, False, 2001, Expired),
    ],
)
def test_acceptance(
    known: bool, newest_ns: int, cancelled: bool, now_ns: int, refusal: type[JobRefused] | None
) -> None:
    def check() -> None:
        check_acceptable(
            COMMAND, known=known, newest_ns=newest_ns, cancelled=cancelled, now_ns=now_ns
        )

    if refusal is None:
        check()
    else:
        with pytest.raises(refusal):
            check()


def test_ended_states_have_no_next_and_the_others_do() -> None:
    assert {state for state, following in NEXT.items() if not following} == ENDED


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_retries_wait_longer_and_never_too_long(attempt: int, jitter: float) -> None:
    delay_s = retry_delay_s(attempt, jitter)
    assert 0.5 <= delay_s <= RETRY_MAX_S
    assert delay_s <= retry_delay_s(attempt + 1, jitter)


@given(st.lists(st.builds(Issue, st.binary(max_size=4096), st.just("x"), st.text(max_size=50))))
def test_a_record_holds_the_first_issues_that_fit(issues: list[Issue]) -> None:
    many = issues * 20
    kept = issues_for_record(many)
    assert kept == many[: len(kept)]
    assert len(kept) <= MAX_ISSUES_IN_JOB
    assert sum(len(issue.path) for issue in kept) <= MAX_ISSUE_BYTES_IN_JOB
    assert len(kept) == len(many) or len(kept) >= 15
