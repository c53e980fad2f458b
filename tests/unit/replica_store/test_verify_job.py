"""What a verify says of the damage that it found."""

from __future__ import annotations

import pytest

from strandline_contracts.events import DamageFound
from strandline_contracts.points import Issue
from strandline_replica_store.checking.verify import Report
from strandline_replica_store.checking.verify_job import issues, outcome, spans
from strandline_runtime.targets import JobFailed


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
