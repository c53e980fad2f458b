"""Forgetting while operators delete and take back, points come, and readers begin."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from strandline_contracts.policy import Retention
from strandline_replica_store.errors import Busy
from strandline_replica_store.forgetting.forget import Forgetting
from strandline_replica_store.forgetting.retention import DAY_NS, Point, Policy
from strandline_replica_store.replica import rewrite
from strandline_replica_store.replica.dropping import Step
from strandline_replica_store.replica.rewrite import Folders, Rewritten
from strandline_replica_store.store.deleted import Deletion
from strandline_replica_store.store.store import Store
from support.replicas import SOURCE, leases_at_rest, made_up, ship

POINTS = 3
DUE = Deletion(deleted_at_ns=0, due_at_ns=1, job="d", by="operator-1")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(str(tmp_path / "store"), name="store-1", site="hq", reserve_bytes=0)
    store.leases = leases_at_rest()
    store.create(SOURCE, "data", "files")
    for number in range(1, POINTS + 1):
        ship(store.replica(SOURCE), f"j{number}", made_up(f"j{number}", number, 1))
    yield store
    store.close()


def forgetting(store: Store, delay_ns: int = 0) -> Forgetting:
    """Return a store's forgetting that has nobody to ask: its steps in threads need none."""
    nobody = cast(Any, None)
    return Forgetting(
        store,
        nobody,
        nobody,
        nobody,
        delay_ns=delay_ns,
        is_wanted_back=lambda _: False,
        on_change=lambda _: None,
    )


def test_a_second_forget_lets_nobody_undelete_what_the_first_drops(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.deletions.put(SOURCE, {1: DUE})
    began, go_on, real = threading.Event(), threading.Event(), rewrite.write_all

    def slow(folders: Folders, steps: Sequence[Step]) -> Iterator[Rewritten]:
        began.set()
        assert go_on.wait(30)
        yield from real(folders, steps)

    monkeypatch.setattr(rewrite, "write_all", slow)
    first = threading.Thread(target=forgetting(store)._carry_out, args=(SOURCE, {1}, set()))
    first.start()
    assert began.wait(30)
    with pytest.raises(Busy):
        forgetting(store)._carry_out(SOURCE, {1}, set())
    with pytest.raises(Busy):
        store.deletions.check_settled(SOURCE)
    go_on.set()
    first.join(30)
    store.deletions.check_settled(SOURCE)
    assert store.replica(SOURCE).points() == [2, 3]


def test_a_delete_of_a_point_that_came_meanwhile_is_not_lost(store: Store) -> None:
    forget = forgetting(store, 7 * DAY_NS)
    before = forget._points(SOURCE)
    # While the bus is asked for the policy a point comes, and an operator deletes it.
    ship(store.replica(SOURCE), "j4", made_up("j4", 4, 1))
    store.deletions.put(SOURCE, {4: DUE, 99: DUE})
    policy = Policy(retention=Retention(days=7))
    assert forget._drop(SOURCE, before, policy, time.time_ns(), False) == []
    assert store.deletions.of(SOURCE) == {4: DUE}


def test_a_point_whose_reading_began_meanwhile_is_not_dropped(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget = forgetting(store)
    real = forget._with_damage

    def while_somebody_reads(source: str, points: list[Point]) -> list[Point]:
        store.leases.take(SOURCE, 1, "agent-web-1")
        return real(source, points)

    monkeypatch.setattr(forget, "_with_damage", while_somebody_reads)
    policy = Policy(retention=Retention(last=1))
    later_ns = time.time_ns() + 30 * DAY_NS
    assert forget._drop(SOURCE, forget._points(SOURCE), policy, later_ns, True) == [2]
    assert store.replica(SOURCE).points() == [1, 3]


def test_a_deleted_point_that_is_read_goes_when_its_reader_has_gone(store: Store) -> None:
    store.deletions.put(SOURCE, {1: DUE})
    store.leases.take(SOURCE, 1, "agent-web-1")
    forget = forgetting(store)
    assert forget._carry_out(SOURCE, {1}, set()) == []
    assert store.deletions.of(SOURCE) == {1: DUE}
    store.leases.release(SOURCE, 1, "agent-web-1")
    assert forget._carry_out(SOURCE, {1}, set()) == [1]
    assert store.deletions.of(SOURCE) == {}
