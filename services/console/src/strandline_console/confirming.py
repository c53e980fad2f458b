"""Asks a person before something is deleted."""

from __future__ import annotations

import asyncio
import sys

from strandline_console.errors import WrongUse
from strandline_console.outcome import say


class NotConfirmed(WrongUse):
    """Nobody has said that it is meant."""

    code = "console.not_confirmed"


def check_askable(*, yes: bool) -> None:
    """Raise NotConfirmed when it has not been said that it is meant and nobody can be asked."""
    if not yes and not sys.stdin.isatty():
        raise NotConfirmed(
            "nothing was deleted: there is no terminal to ask on",
            hint="Say --yes if it is meant.",
        )


async def confirm(name: str, what: str, *, yes: bool) -> None:
    """Return if `yes`, or if the person types `name` after reading `what`; else NotConfirmed."""
    if yes:
        return
    say(what)
    sys.stderr.write(f"Type the name, {name}, to go on: ")
    sys.stderr.flush()
    typed = await asyncio.to_thread(sys.stdin.readline)
    if typed.strip() != name:
        raise NotConfirmed("nothing was deleted: that is not the name", hint=f"It is {name}.")
