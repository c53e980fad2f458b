"""While a job is waited for, a new attempt is told once, and nothing else is."""

from __future__ import annotations

import msgspec
import pytest

from strandline_console.commanding import _tell_again
from strandline_contracts import commands
from support.examples import THE_JOB, command

COMMAND = command(commands.Verify())


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [(1, 2, True), (1, 1, False), (0, 1, False), (None, 2, False), (2, None, False)],
)
def test_only_a_further_attempt_is_told(
    before: int | None, after: int | None, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [
        msgspec.structs.replace(THE_JOB, attempt=attempt) if attempt is not None else None
        for attempt in (before, after)
    ]
    _tell_again(COMMAND, *jobs)
    shown = capsys.readouterr().err
    assert bool(shown) == told
    assert ("attempt 1 did not succeed" in shown) == told
