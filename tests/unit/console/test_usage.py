"""Exit codes and output without a stack: wrong use, unknown commands, nothing up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def strandline(*args: str, state: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "strandline_console", *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin", "STRANDLINE_STATE": str(state)},
    )


@pytest.mark.parametrize(
    "args",
    [
        ["points"],
        ["points", "data", "--limit", "0"],
        ["points", "data", "--bogus"],
        ["restore", "data"],
        ["protect", "--name", "data"],
        ["protect", "/etc"],
        ["pionts", "data"],
        ["delete", "data"],
        ["delete", "data", "--point", "0", "--yes"],
        ["hold", "data"],
        ["retention", "gold", "--last", "-1"],
        ["retention", "--last", "3"],
        ["store", "atach", "/x"],
        ["store", "attach"],
    ],
)
def test_wrong_use_is_2(args: list[str], tmp_path: Path) -> None:
    ran = strandline(*args, state=tmp_path)
    assert ran.returncode == 2, ran.stderr
    assert ran.stdout == ""
    assert "Error:" in ran.stderr


def test_an_unknown_command_names_the_nearest(tmp_path: Path) -> None:
    assert "Did you mean points" in strandline("pionts", state=tmp_path).stderr


def test_every_command_has_help_with_an_example(tmp_path: Path) -> None:
    listed = strandline("--help", state=tmp_path).stdout.partition("Commands:")[2]
    names = [
        line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2] != " "
    ]
    assert {"up", "down", "status", "protect", "restore", "express-full"} <= set(names)
    for name in names:
        shown = strandline(name, "--help", state=tmp_path)
        assert shown.returncode == 0
        assert f"strandline {name}" in shown.stdout.partition("Example")[2]
    for name in ("list", "reindex", "compact", "clock", "attach"):
        shown = strandline("store", name, "--help", state=tmp_path)
        assert f"strandline store {name}" in shown.stdout.partition("Example")[2]


@pytest.mark.parametrize(
    "args", [["unprotect", "data", "--delete-replica"], ["delete", "data", "--point", "3"]]
)
def test_without_a_terminal_and_yes_nothing_is_deleted(args: list[str], tmp_path: Path) -> None:
    ran = strandline(*args, "--json", state=tmp_path)
    assert ran.returncode == 2
    assert json.loads(ran.stdout)["error"]["code"] == "console.not_confirmed"
    assert "--yes" in ran.stderr


def test_a_length_of_time_that_cannot_be_read_is_2(tmp_path: Path) -> None:
    ran = strandline("retention", "gold", "--log-window", "14", state=tmp_path)
    assert ran.returncode == 2
    assert "14d" in ran.stderr


def test_nothing_up_is_1_and_says_what_to_do(tmp_path: Path) -> None:
    ran = strandline("points", "data", state=tmp_path)
    assert ran.returncode == 1
    assert f"no stack is up on {tmp_path}" in ran.stderr
    assert "strandline up" in ran.stderr


def test_with_json_an_error_is_one_document(tmp_path: Path) -> None:
    ran = strandline("points", "data", "--json", state=tmp_path)
    error = json.loads(ran.stdout)["error"]
    assert error["code"] == "console.not_up"
    assert ran.returncode == 1


def test_help_loads_neither_bus_nor_rich(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "strandline_console", "up", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin", "STRANDLINE_STATE": str(tmp_path)},
    )
    loaded = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()}
    assert "typer" in loaded
    assert not loaded & {"nats", "rich"}
