"""Which recovery points are told to be held or deleted."""

from __future__ import annotations

from collections.abc import Sequence

from strandline_console.fate import Fate
from strandline_contracts.reading import ReplicaState

DUE_NS = 1_790_000_000_000_000_000


def replica(*deleted: int, damaged: int = 0, inconsistent: str = "") -> ReplicaState:
    return ReplicaState(
        "00112233445566aa", "data", "files", 3, 3, 9, 9, damaged, inconsistent, 0,
        list(deleted), DUE_NS if deleted else 0,
    )  # fmt: skip


def fate(held: Sequence[int], found: ReplicaState | None = None) -> Fate:
    return Fate.of_replica(held, found)


def test_a_hold_of_all_holds_each() -> None:
    assert fate([0]).is_held(17)
    assert fate([17]).is_held(17)
    assert not fate([17]).is_held(18)


def test_a_deleted_replica_deletes_each() -> None:
    assert fate([], replica(0)).deleted_until_ns(2) == DUE_NS
    assert fate([], replica(2)).deleted_until_ns(2) == DUE_NS
    assert fate([], replica(2)).deleted_until_ns(3) == 0
    assert fate([]).deleted_until_ns(2) == 0


def test_the_document_of_a_point() -> None:
    found = fate([2], replica(3))
    assert found.document(2) == {"held": True, "deleted_until": None}
    assert found.document(3) == {"held": False, "deleted_until": "2026-09-21T14:13:20.000000000Z"}


def test_words_and_remarks() -> None:
    assert fate([2], replica()).words(2) == ["held"]
    assert fate([2], replica()).words(1) == []
    assert fate([], replica()).remarks() == []
    assert fate([2, 3], replica(damaged=4)).remarks() == [
        "4 damaged chunks",
        "2 recovery points held",
    ]
    assert fate([0], replica(0)).remarks()[0].startswith("deleted, gone after 2026-09-21")
    assert fate([], replica(1, inconsistent="why")).remarks()[0] == "inconsistent: why"
