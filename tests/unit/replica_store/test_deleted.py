"""Deletes: the changes, their file, the tombstones, and purges that were killed."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strandline_contracts.policy import Retention
from strandline_replica_store.errors import Busy, Damaged, Deleted, Full, Held
from strandline_replica_store.files import checked_json
from strandline_replica_store.forgetting import policy_history
from strandline_replica_store.forgetting.policy_history import (
    MAX_POLICIES,
    History,
    TooManyPolicies,
    in_force,
    noted,
    spared_until_ns,
)
from strandline_replica_store.forgetting.retention import Policy
from strandline_replica_store.store import purging
from strandline_replica_store.store.deleted import (
    WHOLE,
    DeletedDamaged,
    DeletedFiles,
    Deletion,
    check_not_held,
    due,
    with_deleted,
    with_restored,
)
from support.replicas import SOURCE

points = st.lists(st.integers(1, 9), max_size=4)


def deletion(at: int = 0) -> Deletion:
    return Deletion(deleted_at_ns=at, due_at_ns=at + 7, job=f"job-{at}", by="operator-1")


# The changes


@settings(max_examples=100, deadline=None)
@given(points, points, points)
def test_undelete_takes_back_and_a_second_delete_hastens_nothing(
    first: list[int], second: list[int], back: list[int]
) -> None:
    once = with_deleted({}, first, deletion(1))
    twice = with_deleted(once, second, deletion(2))
    assert set(twice) == {*(first or [WHOLE]), *(second or [WHOLE])}
    assert all(twice[number] == once[number] for number in once)
    left = with_restored(twice, back)
    assert set(left) == (set(twice) - {*back, WHOLE} if back else set())
    assert due(twice, 8) == set(once)
    assert due(twice, 7) == set()


@pytest.mark.parametrize(
    ("asked", "held", "refused"),
    [
        ([1, 2], (), False),
        ([1, 2], (3,), False),
        ([1, 2], (2,), True),
        ([1, 2], (0,), True),
        ([], (2,), True),
        ([], (0,), True),
        ([], (), False),
    ],
)
def test_what_is_held_is_not_deleted(
    asked: list[int], held: tuple[int, ...], refused: bool
) -> None:
    if refused:
        with pytest.raises(Held):
            check_not_held(asked, held)
    else:
        check_not_held(asked, held)


# The file


@pytest.fixture
def files(tmp_path: Path) -> DeletedFiles:
    (tmp_path / SOURCE).mkdir()
    return DeletedFiles(lambda source: str(tmp_path / source))


def test_what_is_deleted_is_remembered(files: DeletedFiles, tmp_path: Path) -> None:
    assert files.of(SOURCE) == {}
    files.put(SOURCE, {3: deletion(1), WHOLE: deletion(2)})
    again = DeletedFiles(lambda source: str(tmp_path / source))
    for each in (files, again):
        assert each.of(SOURCE) == {3: deletion(1), WHOLE: deletion(2)}
        with pytest.raises(Deleted):
            each.check_stands(SOURCE)
    again.put(SOURCE, {})
    again.check_stands(SOURCE)
    assert again.of("ff" * 8) == {}


def test_nothing_is_taken_back_while_it_is_carried_out(files: DeletedFiles) -> None:
    files.put(SOURCE, {3: deletion(1)})
    files.check_settled(SOURCE)
    with files.settling(SOURCE, [3]) as stands:
        assert stands
        with pytest.raises(Busy):
            files.check_settled(SOURCE)
    files.check_settled(SOURCE)
    files.put(SOURCE, {})
    with files.settling(SOURCE, [3]) as stands:
        assert not stands


def test_every_flipped_bit_of_the_file_is_found(files: DeletedFiles, tmp_path: Path) -> None:
    files.put(SOURCE, {13: deletion(1_000_000)})
    path = tmp_path / SOURCE / "deleted.json"
    sound = path.read_bytes()
    for place in range(len(sound)):
        damaged = bytearray(sound)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        fresh = DeletedFiles(lambda source: str(tmp_path / source))
        with pytest.raises(DeletedDamaged):
            fresh.of(SOURCE)
        fresh.check_stands(SOURCE)
    path.write_bytes(sound[:-5])
    with pytest.raises(Damaged):
        checked_json.read(str(path), History)


# Policies that were in force


def policy(last: int) -> Policy:
    return Policy(retention=Retention(last=last))


def test_a_policy_counts_until_the_delay_has_passed() -> None:
    history = noted(None, policy(9), 100, 50)
    history = noted(history, policy(9), 110, 50)
    assert history == History(began_ns=100, seen=[policy_history.Seen(policy=policy(9))])
    history = noted(history, policy(1), 120, 50)
    assert in_force(history, 169, 50) == [policy(9), policy(1)]
    assert in_force(history, 170, 50) == [policy(1)]
    back = noted(history, policy(9), 140, 50)
    assert in_force(back, 189, 50) == [policy(1), policy(9)]
    assert in_force(noted(back, policy(9), 190, 50), 190, 50) == [policy(9)]


def test_without_a_delay_the_latest_counts_alone() -> None:
    history = noted(noted(None, policy(9), 100, 0), policy(1), 120, 0)
    assert in_force(history, 120, 0) == [policy(1)]
    assert spared_until_ns(history, 120, 0) == -1


def test_what_was_there_before_the_first_look_is_spared_for_the_delay() -> None:
    history = noted(None, policy(9), 100, 50)
    assert spared_until_ns(history, 149, 50) == 100
    assert spared_until_ns(history, 150, 50) == -1


def test_too_many_changes_forget_nothing_until_they_are_over() -> None:
    history = noted(None, policy(1), 0, 1000)
    for last in range(2, MAX_POLICIES + 1):
        history = noted(history, policy(last), last, 1000)
    with pytest.raises(TooManyPolicies):
        noted(history, policy(77), 77, 1000)
    assert noted(history, policy(1), 77, 1000).seen[-1].policy == policy(1)
    assert noted(history, policy(99), 2000, 1000).seen[-1].policy == policy(99)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 4)), min_size=1, max_size=12))
def test_the_history_against_an_oracle(changes: list[tuple[int, int]]) -> None:
    """A policy is in force when it was seen lately, or was seen last before that."""
    delay_ns, now, history = 50, 1000, None
    spans: list[tuple[int, int, int]] = []
    for wait, last in changes:
        now += wait
        if spans:
            spans[-1] = (*spans[-1][:2], now)
        spans.append((last, now, now))
        history = noted(history, policy(last), now, delay_ns)
    assert history is not None
    late = now + 20
    expected = {last for last, _, until in spans[:-1] if until + delay_ns > late} | {spans[-1][0]}
    assert {each.retention.last for each in in_force(history, late, delay_ns)} == expected


def test_a_history_that_cannot_be_read_begins_anew(tmp_path: Path) -> None:
    path = str(tmp_path / "policies.json")
    assert policy_history.read(path) is None
    history = noted(noted(None, policy(9), 1, 5), Policy(held=(0,), protected=False), 2, 5)
    policy_history.write(path, history)
    assert policy_history.read(path) == history
    Path(path).write_bytes(Path(path).read_bytes().replace(b'"last": 9', b'"last": 1'))
    assert policy_history.read(path) is None


# Purges


def replica_folder(replicas: Path, name: str) -> Path:
    folder = replicas / name
    (folder / "segments").mkdir(parents=True)
    (folder / "segments" / "1.sls").write_bytes(b"x")
    (folder / "index.db").write_bytes(b"x")
    (folder / "link").symlink_to(replicas)
    return folder


def test_a_purge_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    replicas = tmp_path / "replicas"
    kept = replica_folder(replicas, SOURCE)
    half = replica_folder(replicas, purging.name_of("ff" * 8, 70))
    (half / "index.db").unlink()
    told = replica_folder(replicas, purging.name_of("ee" * 8, 50))
    tombstones = purging.Tombstones(str(tmp_path))
    tombstones.add("ee" * 8, 50)
    heard: list[tuple[str, int]] = []
    stop = threading.Event()
    stop.set()
    purging.resume(str(replicas), tombstones, lambda *each: heard.append(each), stop)
    assert (heard, half.exists()) == ([], True)
    stop.clear()
    purging.resume(str(replicas), tombstones, lambda *each: heard.append(each), stop)
    assert heard == [("ff" * 8, 70)]
    assert sorted(os.listdir(replicas)) == [SOURCE]
    assert (kept / "index.db").exists()
    assert not told.exists()
    again = purging.Tombstones(str(tmp_path))
    assert [again.purged_at_ns(source) for source in ("ff" * 8, SOURCE)] == [70, 0]


def test_a_purge_on_a_full_disk_makes_room_and_is_told_later(tmp_path: Path) -> None:
    replicas = tmp_path / "replicas"
    folder = replica_folder(replicas, purging.name_of(SOURCE, 5))
    tombstones = purging.Tombstones(str(tmp_path))

    def full(source: str, at_ns: int) -> None:
        raise Full("no room for the journal")

    for _ in range(2):
        with pytest.raises(Full):
            purging.resume(str(replicas), tombstones, full, threading.Event())
        assert not (folder / "segments").exists()
        assert (folder / "index.db").exists()
    purging.resume(str(replicas), tombstones, lambda *_: None, threading.Event())
    assert not folder.exists()
    assert tombstones.purged_at_ns(SOURCE) == 5


def test_tombstones_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purging, "MAX_TOMBSTONES", 2)
    tombstones = purging.Tombstones(str(tmp_path))
    for number in (3, 1, 2):
        tombstones.add(f"{number:016x}", number)
    assert [tombstones.purged_at_ns(f"{number:016x}") for number in (1, 2, 3)] == [0, 2, 3]
    (tmp_path / "purged.json").write_bytes(b"rubbish")
    assert purging.Tombstones(str(tmp_path)).purged_at_ns(f"{3:016x}") == 0
