"""What `--at` means: the number of a recovery point, a time, or the newest. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

from strandline_console.errors import WrongUse

NUMBER = re.compile(r"\d{1,18}\Z")


@dataclass(frozen=True)
class At:
    """A recovery point by `number`, or the newest taken at or before `time_ns`; 0 for not given."""

    number: int = 0
    time_ns: int = 0


def parse_at(text: str, local: tzinfo | None = None) -> At:
    """Return what `text` names; empty is the newest. A time without zone is of zone `local`.

    `local` None is the machine's own zone. A time counts to the end of its last digit: `12:30` is
    until 12:30:59.999999999. So the time that `points` prints, however exactly, is its point's.
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
    clock = re.split(r"[T ]", text, maxsplit=1)
    if len(clock) == 1:
        # Its days may have 23 or 25 hours.
        return At(time_ns=_whole_ns(moment + timedelta(days=1), local) - 1)
    return At(time_ns=_whole_ns(moment, local) + _end_ns(clock))


def _whole_ns(moment: datetime, local: tzinfo | None) -> int:
    """Return the Unix time of `moment` without the fraction of its second."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=local) if local else moment.astimezone()
    return int(moment.replace(microsecond=0).timestamp()) * 1_000_000_000


def _end_ns(clock: Sequence[str]) -> int:
    """Return the last nanosecond that a date and time name, counted from the whole second.

    Read from the text: datetime ends at microseconds.
    """
    time = re.split(r"[+\-Z]", clock[1], maxsplit=1)[0]
    whole, _, fraction = time.replace(",", ".").partition(".")
    if fraction:
        digits = fraction[:9]
        return int(digits.ljust(9, "0")) + int("9" * (9 - len(digits)) or "0")
    lengths = {2: 3600, 4: 60}
    return lengths.get(len(re.sub(r"\D", "", whole)), 1) * 1_000_000_000 - 1
