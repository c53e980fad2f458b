"""What a group's retention says and how it changes. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from strandline_console.errors import WrongUse
from strandline_contracts.policy import DEFAULT_RETENTION, Retention

MAX_VALUE = 1_000_000
_UNITS_S = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SPAN = re.compile(r"(\d{1,12})(s|min|h|d|w)\Z")


def parse_span(text: str) -> int:
    """Return the seconds that `text` names, such as 14d, 36h or 90min. Raises WrongUse."""
    found = _SPAN.match(text)
    if text == "0":
        return 0
    if found is None:
        raise WrongUse(
            f"not a length of time: {text!r}",
            hint="Use a number and one of s, min, h, d, w: 14d.",
        )
    return int(found[1]) * _UNITS_S[found[2]]


def effective(retention: Retention) -> Retention:
    """Return what counts: where no rule is set, the default for files."""
    return DEFAULT_RETENTION["files"] if retention == Retention() else retention


def changed(retention: Retention, rules: Mapping[str, int]) -> Retention:
    """Return `retention` with those of its rules set that are named; the others stay."""
    return msgspec.structs.replace(effective(retention), **rules)


def shortens(old: Retention, new: Retention) -> bool:
    """Tell whether some rule keeps less than before, so that recovery points may go."""
    before, after = effective(old), effective(new)
    return any(getattr(after, rule) < getattr(before, rule) for rule in rules_of(before))


def goes_by_count_alone(retention: Retention) -> bool:
    """Tell whether no rule over time stands beside `last`."""
    return retention == Retention(last=retention.last) and retention.last > 0


def rules_of(retention: Retention) -> dict[str, int]:
    return msgspec.structs.asdict(retention)


def retention_text(retention: Retention) -> list[str]:
    """Return each rule that keeps something, as a person would say it."""
    rules = effective(retention)
    said = []
    if rules.last:
        said.append(_newest(rules.last))
    if rules.days:
        said.append(f"all of the last {_count(rules.days, 'day')}")
    for field, unit in (
        ("hourly", "hour"),
        ("daily", "day"),
        ("weekly", "week"),
        ("monthly", "month"),
        ("yearly", "year"),
    ):
        if number := getattr(rules, field):
            said.append(f"the newest of each of the last {_count(number, unit)} that have one")
    if rules.log_window_s:
        said.append(f"every logged moment of the last {span_text(rules.log_window_s)}")
    return said


def span_text(span_s: int) -> str:
    """Return a length of time in the largest unit that divides it."""
    for unit in ("d", "h", "min"):
        if span_s and span_s % _UNITS_S[unit] == 0:
            return f"{span_s // _UNITS_S[unit]} {unit}"
    return f"{span_s} s"


def _newest(number: int) -> str:
    return "the newest recovery point" if number == 1 else f"the newest {number} recovery points"


def _count(number: int, unit: str) -> str:
    return f"{unit}" if number == 1 else f"{number} {unit}s"
