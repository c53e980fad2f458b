"""The store's clock: what is believed, what is doubted, how the doubt ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strandline_replica_store.forgetting.clock_guard import (
    LOST,
    MAX_OFF_NS,
    SECOND_NS,
    TOLERANCE_NS,
    ClockGuard,
    Mark,
    Reading,
    accept,
    agrees,
    anchored,
    judge,
    read_mark,
    receipt_ns,
)
from strandline_replica_store.forgetting.clock_guard import Accepted as Word

DAY_S = 86_400
T0 = Reading(1_800_000_000 * SECOND_NS, 5_000 * SECOND_NS, "boot-1")


def after(seconds: float, *, jump: float = 0, base: Reading = T0) -> Reading:
    """Return the clocks `seconds` later, the wall's pushed by `jump` seconds."""
    return Reading(
        base.wall_ns + int((seconds + jump) * SECOND_NS),
        base.boottime_ns + int(seconds * SECOND_NS),
        base.boot_id,
    )


def rebooted(off_s: float) -> Reading:
    return Reading(T0.wall_ns + int(off_s * SECOND_NS), 3 * SECOND_NS, "boot-2")


def test_a_clock_that_runs_is_believed() -> None:
    mark = judge(None, T0)
    for seconds in (0, 1, 60, DAY_S, 400 * DAY_S):
        mark = judge(mark, after(seconds))
        assert not mark.doubt
        assert mark.highest_ns == after(seconds).wall_ns


@pytest.mark.parametrize("jump", [365 * DAY_S, 3600, 62, -62, -3600, -365 * DAY_S])
def test_a_jump_is_doubted_and_healed_by_going_back(jump: float) -> None:
    mark = judge(judge(None, T0), after(600))
    doubted = judge(mark, after(660, jump=jump))
    assert doubted.doubt
    assert doubted.highest_ns == mark.highest_ns
    assert not judge(doubted, after(720)).doubt


@pytest.mark.parametrize("jump", [59, -59])
def test_a_small_step_is_believed_and_lowers_nothing(jump: float) -> None:
    mark = judge(judge(None, T0), after(600))
    found = judge(mark, after(600, jump=jump))
    assert not found.doubt
    assert found.highest_ns >= mark.highest_ns


def test_a_step_is_forgiven_in_time() -> None:
    mark = judge(None, T0)
    assert judge(mark, after(100, jump=300)).doubt
    assert not judge(mark, after(3 * DAY_S, jump=300)).doubt


def test_a_clock_that_is_pushed_a_little_at_each_look_is_caught() -> None:
    mark = judge(None, T0)
    for look in range(1, 100):
        mark = judge(mark, after(60 * look, jump=50 * look))
        if mark.doubt:
            break
    assert mark.doubt
    assert mark.highest_ns < after(60 * 2).wall_ns + TOLERANCE_NS


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7200), st.integers(-(10**6), 10**6)), max_size=12))
def test_believed_time_never_leaves_the_tolerance(looks: list[tuple[int, int]]) -> None:
    """Whatever a clock does within one boot, what is believed lies near the anchor's time."""
    mark, seconds = judge(None, T0), 0
    for wait_s, jump_s in looks:
        seconds += wait_s
        now = after(seconds, jump=jump_s)
        highest_ns = mark.highest_ns
        mark = judge(mark, now)
        assert mark.highest_ns >= highest_ns
        if not mark.doubt:
            assert abs(jump_s) <= 60 + seconds / 1000


@pytest.mark.parametrize(
    ("off_s", "believed"),
    [(1, True), (29 * DAY_S, True), (-59, True), (-61, False), (31 * DAY_S, False)],
)
def test_after_a_reboot(off_s: float, *, believed: bool) -> None:
    mark = judge(judge(None, T0), rebooted(off_s))
    assert (not mark.doubt) == believed
    if believed:
        assert mark.boot_id == "boot-2"
        assert mark.highest_ns == max(T0.wall_ns, rebooted(off_s).wall_ns)


def test_a_doubt_outlives_reboots() -> None:
    mark = judge(judge(None, T0), after(60, jump=365 * DAY_S))
    year = Reading(after(90, jump=365 * DAY_S).wall_ns, SECOND_NS, "boot-2")
    assert judge(mark, year).doubt
    assert judge(judge(mark, year), year).doubt
    assert MAX_OFF_NS < 365 * DAY_S * SECOND_NS


def test_the_time_of_receipt_is_the_latest_that_it_can_be() -> None:
    assert receipt_ns(None, T0) == T0.wall_ns
    mark = judge(judge(None, T0), after(600))
    for seconds, jump in ((660, 0), (660, 3600), (660, 59)):
        now = after(seconds, jump=jump)
        assert receipt_ns(judge(mark, now), now) == now.wall_ns
    back = after(660, jump=-365 * DAY_S)
    assert receipt_ns(judge(mark, back), back) == after(660).wall_ns
    assert receipt_ns(judge(mark, rebooted(-DAY_S)), rebooted(-DAY_S)) == mark.highest_ns
    assert receipt_ns(LOST, T0) == T0.wall_ns


def test_a_word_about_the_clock_holds_for_that_clock_alone() -> None:
    word = Word(**T0._asdict())
    assert agrees(word, after(30))
    assert not agrees(word, after(30, jump=3600))
    assert not agrees(word, after(2 * 3600))
    assert not agrees(word, rebooted(30))


class World:
    """A guard, its clocks, and what it told."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now = T0
        self.told: list[str] = []
        self.guard = self.restarted()

    def restarted(self) -> ClockGuard:
        self.guard = ClockGuard(
            str(self.root), lambda doubt, _: self.told.append(doubt), look=lambda: self.now
        )
        return self.guard

    def look(self, now: Reading) -> int | None:
        self.now = now
        return self.guard.now_ns()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_it_tells_once_and_remembers_that_over_a_restart(world: World) -> None:
    assert world.look(T0) == T0.wall_ns
    year = after(60, jump=365 * DAY_S)
    assert world.look(year) is None
    assert world.look(after(120, jump=365 * DAY_S)) is None
    world.restarted()
    assert world.look(after(180, jump=365 * DAY_S)) is None
    assert len(world.told) == 1
    assert "365 days" in world.told[0] or "364 days" in world.told[0]
    assert world.look(after(240)) == after(240).wall_ns
    assert len(world.told) == 2
    assert world.told[1] == ""


def test_a_person_removes_the_doubt(world: World) -> None:
    world.look(T0)
    year = after(60, jump=365 * DAY_S)
    assert world.look(year) is None
    accept(str(world.root), look=lambda: year)
    later = after(10, base=year)
    assert world.look(later) == later.wall_ns
    assert world.told[-1] == ""
    assert not (world.root / "clock.accept").exists()
    # From there the old time is the wrong one.
    assert world.look(after(3600)) is None


def test_an_old_word_is_no_licence(world: World) -> None:
    world.look(T0)
    accept(str(world.root), look=lambda: T0)
    assert world.look(after(60, jump=365 * DAY_S)) is None
    assert not (world.root / "clock.accept").exists()


def test_a_damaged_clock_file_is_a_doubt(world: World) -> None:
    world.look(T0)
    path = world.root / "clock.json"
    data = bytearray(path.read_bytes())
    place = data.index(b"highest_ns") + 14
    data[place] ^= 1
    path.write_bytes(data)
    world.restarted()
    assert world.look(after(60)) is None
    assert "damaged" in world.told[-1]
    accept(str(world.root), look=lambda: after(90))
    assert world.look(after(91)) == after(91).wall_ns


def test_the_mark_is_not_written_at_every_look(world: World) -> None:
    world.look(T0)
    first = (world.root / "clock.json").stat().st_ino
    world.look(after(30))
    assert (world.root / "clock.json").stat().st_ino == first
    world.look(after(90))
    mark = read_mark(str(world.root))
    assert mark is not None
    assert mark.highest_ns == after(90).wall_ns
    assert anchored(T0).wall_ns == mark.wall_ns


def test_the_tool_for_people(tmp_path: Path) -> None:
    tool = [sys.executable, "-m", "strandline_replica_store.forgetting.clock_guard", str(tmp_path)]
    refused = subprocess.run(tool, capture_output=True, check=False)
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["error"]["code"] == "store.not_allowed"
    (tmp_path / "store.json").write_text("{}")
    found = json.loads(subprocess.run(tool, capture_output=True, check=True).stdout)
    assert (found["doubt"], found["accepted"]) == ("", False)
    said = subprocess.run([*tool, "--accept"], capture_output=True, check=True).stdout
    assert json.loads(said)["accepted"] is True
    guard = ClockGuard(str(tmp_path), lambda *_: None)
    assert guard.now_ns() is not None
    assert isinstance(read_mark(str(tmp_path)), Mark)
    assert not (tmp_path / "clock.accept").exists()
