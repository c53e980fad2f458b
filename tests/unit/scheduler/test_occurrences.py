"""Which occurrences are due: the missed-run rule, jitter, and that steps of time do not matter."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strandline_contracts.policy import Group, Source
from strandline_contracts.streams import COMMAND_MAX_AGE_NS
from strandline_scheduler.cron import SECOND_NS
from strandline_scheduler.errors import BadPolicy
from strandline_scheduler.occurrences import (
    MIN_VALID_NS,
    Key,
    Occurrence,
    Policies,
    Schedule,
    due,
    jitter_s,
    next_ns,
    read_schedule,
    settle,
)

MINUTE_NS = 60 * SECOND_NS
HOUR_NS = 60 * MINUTE_NS
DAY_NS = 24 * HOUR_NS
START = 1_790_000_000 * SECOND_NS


def source(number: int, group: str = "gold") -> Source:
    return Source(
        id=f"{number:016x}", name=f"s{number}", type="files", server="web", store="st", group=group
    )


def policies(*sources: Source, every_s: int = 900, cron: tuple[str, ...] = ()) -> Policies:
    schedule = Schedule(sync_every_s=every_s, express_full=cron, zone=ZoneInfo("Europe/Berlin"))
    return Policies(sources=sources, schedules={"gold": schedule})


class Emitter:
    """The loop around the core, without its waiting: settle, due, note."""

    def __init__(self, rules: Policies, now_ns: int) -> None:
        self.rules = rules
        self.last = settle(rules, {}, now_ns)
        self.emitted: list[Occurrence] = []

    def step(self, now_ns: int) -> list[Occurrence]:
        self.last = settle(self.rules, self.last, now_ns)
        found = due(self.rules, self.last, now_ns)
        for each in found:
            self.last[each.key] = each.at_ns
        self.emitted += found
        return found


def marks(occurrences: list[Occurrence]) -> list[tuple[str, str, int]]:
    return sorted((each.source.id, each.verb, each.at_ns) for each in occurrences)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 900), min_size=1, max_size=60),
    st.sampled_from([900, 1800, 3600]),
    st.integers(0, DAY_NS // SECOND_NS),
)
def test_any_split_of_time_into_steps_emits_the_same_occurrences(
    steps_s: list[int], every_s: int, start_s: int
) -> None:
    rules = policies(source(1), source(2), every_s=every_s, cron=("0 */2 * * *",))
    begin = START + start_s * SECOND_NS
    stepped, fine = Emitter(rules, begin), Emitter(rules, begin)
    now = begin
    for step_s in steps_s:  # no step has two occurrences of one schedule
        now += step_s * SECOND_NS
        stepped.step(now)
    moment = begin
    while (coming := next_ns(rules, moment)) is not None and coming <= now:
        moment = coming
        fine.step(moment)
    assert marks(stepped.emitted) == marks(fine.emitted)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 3 * 86_400), min_size=1, max_size=12))
def test_of_what_was_missed_the_newest_is_emitted_once(steps_s: list[int]) -> None:
    rules = policies(source(1), every_s=3600, cron=("0 2 * * *",))
    emitter, now = Emitter(rules, START), START
    for step_s in steps_s:
        before, now = now, now + step_s * SECOND_NS
        found = emitter.step(now)
        for each in found:
            assert before < each.at_ns <= now < each.not_after_ns
        assert len({each.key for each in found}) == len(found)
        assert emitter.step(now) == []
        offset = jitter_s(rules.sources[0].id, 3600) * SECOND_NS
        newest = (now - offset) // HOUR_NS * HOUR_NS + offset
        syncs = [each.at_ns for each in found if each.verb == "sync"]
        assert syncs == ([newest] if newest > before else [])
    everything = marks(emitter.emitted)
    assert len(set(everything)) == len(everything)


def test_a_year_of_three_sources_has_every_occurrence_once() -> None:
    rules = policies(source(1), source(2), source(3), every_s=3600, cron=("30 2 * * *",))
    emitter, now = Emitter(rules, START), START
    while (coming := next_ns(rules, now)) is not None and coming <= START + 365 * DAY_NS:
        now = coming
        assert emitter.step(now)
    verbs = [each.verb for each in emitter.emitted]
    assert verbs.count("express_full") == 3 * 365
    assert verbs.count("sync") == 3 * 365 * 24
    assert len({each.job for each in emitter.emitted}) == len(verbs)


def test_a_new_schedule_misses_nothing_from_before_it_was_made() -> None:
    rules = policies(source(1), cron=("0 2 * * *",))
    assert due(rules, settle(rules, {}, START), START) == []
    assert due(rules, {}, START) == []


def test_an_occurrence_is_not_emitted_after_its_not_after() -> None:
    rules = policies(source(1), every_s=0, cron=("0 2 1 * *",))
    schedule = rules.schedules["gold"]
    [key] = settle(rules, {}, START)
    assert key == Key(source(1).id, "express_full")
    at = next_ns(rules, START)
    assert at is not None
    assert schedule.express_full
    last = {key: START}
    [found] = due(rules, last, at + COMMAND_MAX_AGE_NS - 1)
    assert (found.at_ns, found.not_after_ns) == (at, at + COMMAND_MAX_AGE_NS)
    assert due(rules, last, at + COMMAND_MAX_AGE_NS) == []


def test_a_command_holds_until_the_next_one_and_ten_minutes_at_least() -> None:
    every_minute = policies(source(1), every_s=60)
    last = {Key(source(1).id, "sync"): START - HOUR_NS}
    [found] = due(every_minute, last, START)
    assert found.not_after_ns - found.at_ns == MIN_VALID_NS
    [found] = due(policies(source(1), every_s=3600), last, START)
    assert found.not_after_ns - found.at_ns == HOUR_NS


def test_sources_of_one_interval_are_spread_the_same_each_time() -> None:
    offsets = {jitter_s(source(number).id, 86_400) for number in range(200)}
    assert len(offsets) > 100
    assert max(offsets) < 900
    assert jitter_s(source(7).id, 60) == jitter_s(source(7).id, 60) < 60


def test_a_clock_that_was_ahead_does_not_stop_the_schedule() -> None:
    rules = policies(source(1), every_s=60)
    key = Key(source(1).id, "sync")
    last = settle(rules, {key: START + 365 * DAY_NS}, START)
    assert last == {key: START}
    assert due(rules, last, START + MINUTE_NS)


def test_a_schedule_that_is_gone_is_forgotten() -> None:
    rules = policies(source(1), source(2, group="other"), every_s=60)
    last = {Key(source(number).id, "sync"): START for number in (1, 2, 3)}
    assert settle(rules, last, START) == {Key(source(1).id, "sync"): START}
    assert [each.source.id for each in due(rules, last, START + HOUR_NS)] == [source(1).id]


@pytest.mark.parametrize(
    "group",
    [
        Group(name="g", sync_every_s=59),
        Group(name="g", sync_every_s=-60),
        Group(name="g", sync_every_s=10**12),
        Group(name="g", express_full=["often"]),
        Group(name="g", express_full=["0 2 * * *"] * 65),
        Group(name="g", timezone="Middle/Earth"),
        Group(name="g", timezone="../etc/passwd"),
        Group(name="g", timezone=""),
    ],
)
def test_a_group_that_means_nothing_is_refused(group: Group) -> None:
    with pytest.raises(BadPolicy):
        read_schedule(group)
