"""What `--at` means: the number of a recovery point, a time, or the newest. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, tzinfo

from strandline_console.errors import WrongUse

NUMBER = re.compile(r"\d{1,18}\Z")


@dataclass(frozen=True)
class At:
    """A recovery point by `number`, or the newest taken at or before `time_ns`; 0 for not given."""

    number: int = 0
    time_ns: int = 0


def parse_at(text: str, local: tzinfo | None = None) -> At:
    """Return what `text` names; empty is the newest. A time without zone is of zone `local`.

    `local` None is the machine's own zone. A time counts to its end: `12:30` is until 12:30:59.
    Raises WrongUse.
    """
    if not text:
        return At()
    if NUMBER.match(text):
        if int(text) == 0:
            raise WrongUse("recovery points are counted from 1", hint="strandline points NAME")
        return At(number=int(text))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise WrongUse(
            f"neither a recovery point's number nor a time: {text!r}",
            hint="Use a number from `strandline points`, or a time such as 2026-01-31T18:30:00.",
        ) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=local) if local else moment.astimezone()
    whole_ns = int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000
    return At(time_ns=whole_ns + _rest_ns(text))


def _rest_ns(text: str) -> int:
    """Return how long the named day, minute or second goes on, less one nanosecond."""
    clock = re.split(r"[T ]", text, maxsplit=1)
    if len(clock) == 1:
        return 86_400_000_000_000 - 1
    time = re.split(r"[+\-Z]", clock[1], maxsplit=1)[0]
    if "." in time or "," in time:
        return 0
    digits = re.sub(r"\D", "", time)
    lengths = {2: 3600, 4: 60}
    return lengths.get(len(digits), 1) * 1_000_000_000 - 1
