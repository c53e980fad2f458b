"""What a group's retention says, how options change it, and when it keeps less than before."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strandline_console.errors import WrongUse
from strandline_console.retention_rules import (
    changed,
    effective,
    parse_span,
    retention_text,
    rules_of,
    shortens,
    span_text,
)
from strandline_contracts.policy import Retention

DEFAULT = Retention(days=7, daily=64)
RULES = sorted(rules_of(Retention()))
RETENTIONS = st.builds(Retention, **{rule: st.integers(0, 5) for rule in RULES})


@pytest.mark.parametrize(
    ("text", "span_s"),
    [("14d", 1_209_600), ("36h", 129_600), ("90min", 5400), ("7s", 7), ("2w", 1_209_600), ("0", 0)],
)
def test_spans(text: str, span_s: int) -> None:
    assert parse_span(text) == span_s


@pytest.mark.parametrize("text", ["", "14", "d", "14 d", "-1d", "1.5d", "14m", "14D", "1d2h"])
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(WrongUse):
        parse_span(text)


def test_a_span_is_told_in_its_largest_unit() -> None:
    assert [span_text(s) for s in (86400, 129_600, 5400, 61)] == ["1 d", "36 h", "90 min", "61 s"]


def test_no_rule_is_the_default_and_a_first_rule_adds_to_it() -> None:
    assert effective(Retention()) == DEFAULT
    assert changed(Retention(), {"last": 3}) == Retention(last=3, days=7, daily=64)
    assert changed(Retention(), {"daily": 9, "days": 0}) == Retention(daily=9)


def test_rules_that_are_not_named_stay() -> None:
    kept = changed(Retention(daily=7, yearly=3), {"daily": 9})
    assert kept == Retention(daily=9, yearly=3)


def test_each_rule_is_said() -> None:
    every = Retention(**dict.fromkeys(RULES, 3))
    said = retention_text(every)
    assert len(said) == len(RULES)
    assert said[0] == "the newest 3 recovery points"
    assert said[-1] == "every logged moment of the last 3 s"
    assert retention_text(Retention()) == [
        "all of the last 7 days",
        "the newest of each of the last 64 days that have one",
    ]


@settings(max_examples=200)
@given(RETENTIONS, RETENTIONS)
def test_less_of_any_rule_shortens(old: Retention, new: Retention) -> None:
    before, after = rules_of(effective(old)), rules_of(effective(new))
    assert shortens(old, new) == any(after[rule] < before[rule] for rule in before)
    assert not shortens(old, old)


def test_the_end_of_all_rules_is_the_default_again() -> None:
    assert shortens(Retention(last=7), Retention())
    assert not shortens(Retention(), DEFAULT)
    assert not shortens(Retention(daily=3), Retention())


@given(RETENTIONS, st.sampled_from(RULES), st.integers(0, 9))
def test_changed_sets_what_it_is_told(old: Retention, rule: str, value: int) -> None:
    new = changed(old, {rule: value})
    assert getattr(new, rule) == value
    others = msgspec.structs.replace(new, **{rule: 0})
    assert others == msgspec.structs.replace(effective(old), **{rule: 0})
