"""The second reader lies beside the replicas, whole, and runs there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from strandline_replica_store.store import way_out

PROGRAM = Path(__file__).parents[3] / "reader" / way_out.NAME


def test_it_is_put_there_once_and_anew_when_it_differs(tmp_path: Path) -> None:
    assert way_out.leave(str(tmp_path))
    there = tmp_path / way_out.NAME
    assert there.read_bytes() == PROGRAM.read_bytes()
    assert not way_out.leave(str(tmp_path))
    there.write_text("of an older version")
    assert way_out.leave(str(tmp_path))
    assert there.read_bytes() == PROGRAM.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [way_out.NAME]


def test_it_runs_where_it_lies(tmp_path: Path) -> None:
    way_out.leave(str(tmp_path))
    argv = [sys.executable, "-I", str(tmp_path / way_out.NAME), "points", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "is no replica folder" in done.stderr
