"""A whole stack of an unprivileged user: what it may not read or set is told, all else is kept."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.stack import Stack, differences

pytestmark = pytest.mark.root

USER = "nobody"
GROUP = pwd.getpwnam(USER).pw_gid


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    stack = Stack("--server", "here", user=USER)
    try:
        stack.up()
        yield stack
    finally:
        stack.close()


@pytest.fixture
def data(stack: Stack) -> Iterator[Path]:
    """A file of the user's, one of root's, and one that the user may not open."""
    data = stack.work / "data"
    data.mkdir()
    for name in ("open", "roots", "secret"):
        (data / name).write_bytes(name.encode())
    for path in (data, data / "open"):
        shutil.chown(path, USER, GROUP)
    # What a process of root's was started with is closed to all others, whatever they may read.
    subprocess.run(["mount", "--bind", f"/proc/{os.getpid()}/environ", data / "secret"], check=True)
    yield data
    if os.path.ismount(data / "secret"):
        subprocess.run(["umount", data / "secret"], check=True)


def test_what_cannot_be_read_or_set_is_listed(stack: Stack, data: Path) -> None:
    assert stack.owners() == {USER}
    made = stack.json("protect", data, "--name", "part", "--server", "here", "--wait", code=4)
    assert made["partial"] is True
    assert [(issue["path"]["text"], issue["code"]) for issue in made["issues"]] == [
        (str(data / "secret"), "unreadable")
    ]
    assert stack.points("part")[0]["partial"] is True
    told = stack.run("express-full", "part", "--wait")
    assert told.returncode == 4
    assert "secret: unreadable" in told.stderr

    # Restored by the same user: the content is right, the owner cannot be set.
    target = stack.work / "part-again"
    restored = stack.restore("part", 1, target, code=4)
    wrong = {issue["path"]["text"]: issue["code"] for issue in restored["issues"]}
    assert wrong["roots"] == "metadata"
    assert "open" not in wrong
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {
        "open": b"open",
        "roots": b"roots",
    }

    # Once all may be read, and is the user's own, the next point is whole.
    subprocess.run(["umount", data / "secret"], check=True)
    for path in (data, *data.iterdir()):
        shutil.chown(path, USER, GROUP)
    whole = stack.json("express-full", "part", "--wait")
    assert whole["partial"] is False
    stack.restore("part", whole["point"], stack.work / "whole")
    assert differences(data, stack.work / "whole") == ""
