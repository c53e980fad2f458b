"""Stacks of real processes: state folders that any user can pass to, and the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

COMMAND_TIMEOUT_S = 120
DEADLINE_S = 30.0


@dataclass(frozen=True)
class Stack:
    """A state folder and the commands that are given to it."""

    root: Path
    prefix: tuple[str, ...] = ()

    def run(self, *args: str, code: int = 0) -> str:
        """Run `strandline`; return stdout; fail unless it exits with `code`."""
        ran = self.ran(*args)
        assert ran.returncode == code, f"{args}: {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout

    def ran(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.prefix, *self.command(*args)],
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
            cwd="/",
        )

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "strandline_console", "--state", str(self.root), *args]

    def document(self, *args: str, code: int = 0) -> Any:
        return json.loads(self.run(*args, "--json", code=code))

    def endpoint(self) -> Any:
        return json.loads((self.root / "run" / "endpoint.json").read_text())

    def all_ready(self) -> bool:
        return self.ran("status").returncode == 0


@contextmanager
def stacks() -> Iterator[Callable[..., Stack]]:
    """Give stacks with state folders of their own; afterwards take them down and away."""
    made: list[tuple[Stack, Path]] = []

    def make(*prefix: str, owner: int | None = None) -> Stack:
        above = Path(tempfile.mkdtemp(prefix="strandline-"))
        above.chmod(0o755)
        if owner is not None:
            os.chown(above, owner, owner)
        stack = Stack(above / "state", prefix)
        made.append((stack, above))
        return stack

    yield make
    for stack, above in made:
        stack.ran("down")
        left = still_alive(stack.root)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(above)
        assert not left, f"left behind: {left}"


@pytest.fixture
def new_stack() -> Iterator[Callable[..., Stack]]:
    with stacks() as make:
        yield make


@pytest.fixture
def stack(new_stack: Callable[..., Stack]) -> Stack:
    return new_stack()


@pytest.fixture(scope="module")
def up() -> Iterator[Stack]:
    """A stack with the agents of srv1 and srv2, for all tests of a file: names must not clash."""
    with stacks() as make:
        stack = make()
        stack.run("up", "--detach", "--server", "srv1", "--server", "srv2")
        yield stack


def still_alive(root: Path) -> list[int]:
    """Return the processes that hold the stack's lock file open, as /proc tells."""
    alive = os.fsencode(root / "run" / "alive")
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            links = [os.readlink(os.fsencode(fd)) for fd in (entry / "fd").iterdir()]
        except OSError:
            continue
        if alive in links:
            found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.05)


@pytest.fixture(name="wait_until")
def give_wait_until() -> Callable[..., None]:
    return wait_until


@pytest.fixture(name="still_alive")
def give_still_alive() -> Callable[[Path], list[int]]:
    return still_alive
