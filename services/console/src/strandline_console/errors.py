"""The errors of the command line; each knows the exit code that it ends with."""

from __future__ import annotations

from collections.abc import Sequence

from strandline_contracts.errors import StrandlineError

DONE = 0
FAILED = 1
WRONG_USE = 2
NO_SUCH_THING = 3
IN_PART = 4


class ConsoleError(StrandlineError):
    """The root of what the command line raises."""

    code = "console.failed"
    exit_code = FAILED


class WrongUse(ConsoleError):
    """The command was given something that it cannot take."""

    code = "console.wrong_use"
    exit_code = WRONG_USE


class NoSuchThing(ConsoleError):
    """There is nothing of this name; `nearest` lists names like it."""

    code = "console.no_such_thing"
    exit_code = NO_SUCH_THING

    def __init__(self, message: str, *, nearest: Sequence[str] = (), hint: str = "") -> None:
        if nearest:
            hint = f"Did you mean {', '.join(nearest)}?"
        super().__init__(message, hint=hint)
        self.nearest = list(nearest)


class NotUp(ConsoleError):
    """No stack runs on the state folder."""

    code = "console.not_up"
    hint = (
        "Start it with `strandline up --detach`, name its folder with --state, or name a settings "
        "file with STRANDLINE_CONFIG."
    )


class JobNotDone(ConsoleError):
    """A job ended otherwise than wished; the message says how."""

    code = "job.failed"
