"""What a verify says of the damage that it found."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from strandline_contracts.events import DamageFound
from strandline_contracts.points import Issue
from strandline_replica_store.checking.scrub import verified
from strandline_replica_store.checking.verify import Report
from strandline_replica_store.checking.verify_job import VerifyJob, issues, outcome, spans
from strandline_replica_store.store.store import Store
from strandline_runtime.targets import JobFailed
from support.replicas import SOURCE, made_up, ship

OTHER = "ffeeddccbbaa9988"


def damage(points: list[int], *files: bytes, chunk: int = 1, reason: str = "bad") -> DamageFound:
    return DamageFound(
        chunk=chunk, segment=1, offset=0, reason=reason, points=points, files=list(files)
    )


def test_numbers_are_written_as_people_do() -> None:
    assert spans([]) == "none"
    assert spans([3]) == "3"
    assert spans({7, 3, 1, 2, 9, 8}) == "1 to 3, 7 to 9"


def test_each_path_is_named_once_with_all_its_points() -> None:
    found = issues(
        [
            damage([1, 2], b"a", b"b", reason="first"),
            damage([4], b"a", reason="second"),
            damage([9], chunk=0, reason="manifest 9: torn"),
        ]
    )
    assert found == [
        Issue(b"", "damaged", "in recovery points 9: manifest 9: torn"),
        Issue(b"a", "damaged", "in recovery points 1 to 2, 4: first"),
        Issue(b"b", "damaged", "in recovery points 1 to 2: first"),
    ]


def test_a_job_that_found_damage_fails_and_shows_it() -> None:
    report = Report(chunks=5, read_bytes=100, damaged=1, damages=[damage([2], b"a")])
    with pytest.raises(JobFailed) as failed:
        outcome(report)
    assert (failed.value.code, failed.value.retryable) == ("store.damage", False)
    assert failed.value.outcome.issues == [Issue(b"a", "damaged", "in recovery points 2: bad")]
    assert failed.value.outcome.totals.issues == 1
    sound = outcome(Report(chunks=5, manifests=2))
    assert sound.detail == "5 chunks, 2 manifests and the index are sound"


def test_a_replica_that_is_closed_behind_the_reader_was_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever gives a reader back lets its replica be closed, when others want the room."""
    monkeypatch.setattr("strandline_replica_store.store.store.MAX_OPEN_REPLICAS", 1)
    store = Store(str(tmp_path), name="store-1", site="hq", reserve_bytes=0)
    for source in (SOURCE, OTHER):
        store.create(source, "data", "files")
    ship(store.replica(SOURCE), "j1", made_up("j1", 1, 1))
    take_back = store._take_back

    def take_back_and_open_another(source: str, *values: Any) -> None:
        take_back(source, *values)
        if source == SOURCE:
            store.replica(OTHER)

    monkeypatch.setattr(store, "_take_back", take_back_and_open_another)

    async def run() -> None:
        context: Any = SimpleNamespace(
            command=SimpleNamespace(source=SOURCE),
            cancelled=asyncio.Event(),
            progress=lambda *_, **__: None,
        )
        await VerifyJob(store, lambda _: None).run(context)

    asyncio.run(run())
    assert not store.is_open(SOURCE)
    assert store.replica(SOURCE).on_database(verified).at_ns
    store.close()
