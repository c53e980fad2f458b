"""A whole Strandline of its own, driven by the command `strandline` as a user would."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from strandline_contracts.codec import decode
from strandline_contracts.jobs import Job

COMMAND = Path(sys.executable).parent / "strandline"
PROCESSES = {
    "agent": b"strandline_agent",
    "store": b"strandline_replica_store",
    "catalog": b"strandline_catalog",
    "scheduler": b"strandline_scheduler",
    "nats": b"nats-server",
    "postgres": b"postgres",
}


class Stack:
    """`up` to `down`; `work` is a folder that the Postgres user can reach."""

    def __init__(self, *up_options: str, user: str = "") -> None:
        self.work = Path(tempfile.mkdtemp(prefix="strandline-e2e-", dir="/var/tmp"))
        self.work.chmod(0o755)
        self.state = self.work / "state"
        self.up_options = up_options
        self.command: list[str | Path] = [COMMAND]
        if user:
            shutil.chown(self.work, user)
            self.command = [*as_user(user), COMMAND]
        self.env = {**os.environ, "STRANDLINE_STATE": str(self.state)}

    def up(self) -> None:
        done = self.run("up", "--detach", *self.up_options, timeout_s=60)
        assert done.returncode == 0, done.stderr

    def down(self) -> None:
        self.run("down", timeout_s=60)

    def close(self) -> None:
        self.down()
        left = self.processes()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.work, ignore_errors=True)
        assert not left, f"down left {left}"

    def run(self, *argv: str | Path, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run `strandline ARGV...` to its end, whatever that is."""
        return subprocess.run(
            [os.fspath(part) for part in (*self.command, *argv)],
            env=self.env,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="surrogateescape",
            timeout=timeout_s,
            check=False,
        )

    def start(self, *argv: str | Path) -> subprocess.Popen[str]:
        """Start `strandline ARGV...` and return while it runs."""
        return subprocess.Popen(
            [os.fspath(part) for part in (*self.command, *argv)],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def json(self, *argv: str | Path, code: int = 0, timeout_s: float = 120) -> Any:
        """Run `strandline ARGV... --json`, expect the exit code, return the document."""
        done = self.run(*argv, "--json", timeout_s=timeout_s)
        assert done.returncode == code, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    def points(self, name: str) -> list[dict[str, Any]]:
        """Return the recovery points of a source, oldest first."""
        listed = self.json("points", name)["points"]
        return sorted(listed, key=lambda point: int(point["number"]))

    def restore(self, name: str, point: int, target: Path, *options: str, code: int = 0) -> Any:
        return self.json(
            "restore", name, "--at", str(point), "--to", target, "--wait", *options, code=code
        )

    def processes(self) -> dict[int, bytes]:
        """Return the processes of this stack: pid to command line."""
        needle = os.fsencode(self.state)
        found: dict[int, bytes] = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                environ = Path(f"/proc/{pid}/environ").read_bytes()
                argv = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if int(pid) != os.getpid() and argv and (needle in environ or needle in argv):
                found[int(pid)] = argv
        return found

    def owners(self) -> set[str]:
        """Return the users as whom the stack's processes run."""
        return {Path(f"/proc/{pid}").owner() for pid in self.processes()}

    def pid(self, what: str) -> int:
        """Return the main process of one of PROCESSES: the oldest that matches."""
        pids = self._pids(what)
        assert pids, f"no process for {what}: {self.processes()}"
        return min(pids)

    def _pids(self, what: str) -> list[int]:
        pids = [pid for pid, argv in self.processes().items() if PROCESSES[what] in argv]
        if what == "postgres":
            pids = [pid for pid in pids if b"-D" in self.processes().get(pid, b"")]
        return pids

    def kill(self, what: str) -> None:
        """Kill one of PROCESSES, once it is there again if it was killed just before."""
        until(lambda: bool(self._pids(what)), f"{what} is there")
        os.kill(self.pid(what), signal.SIGKILL)

    def agent(self, server: str) -> int:
        """Return the process of the agent of `server`."""
        endpoint = json.loads((self.state / "run" / "endpoint.json").read_text())
        return int(endpoint["processes"][f"agent-{server}"])

    def kill_supervisor(self) -> None:
        """Kill what starts all others again; they end by themselves."""
        endpoint = json.loads((self.state / "run" / "endpoint.json").read_text())
        os.kill(endpoint["supervisor"], signal.SIGKILL)

    def open_jobs(self, server: str = "here") -> list[Job]:
        """Return the jobs of a server's agent that have not ended, from its own journal."""
        journal = self.state / f"agent-{server}" / "journal.db"
        with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as conn:
            rows = conn.execute("SELECT record FROM jobs WHERE ended = 0").fetchall()
        return [decode(row[0], Job) for row in rows]

    def until_running(self) -> None:
        """Wait until a job of the agent `here` is at work."""
        until(lambda: any(job.state == "running" for job in self.open_jobs()), "a job runs")


def as_user(user: str) -> list[str | Path]:
    """Return the beginning of a command line that runs the rest as an unprivileged user.

    The interpreter of the tests may lie below a folder that only root may pass: the capability
    lets the user read it. So file modes hide nothing from the user; /proc still does.
    """
    entry = pwd.getpwnam(user)
    ids = [f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
    capability = "+dac_read_search"
    return ["setpriv", *ids, f"--inh-caps={capability}", f"--ambient-caps={capability}"]


def until(condition: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
    """Wait until `condition` holds; fail saying `what` was waited for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not in {timeout_s} s: {what}"
        time.sleep(0.02)


def differences(source: Path, restored: Path, *options: str) -> str:
    """Return what rsync finds different between two trees, content and all metadata; "" if none."""
    argv = ["rsync", "-aHAXn", "--checksum", "--delete", "--itemize-changes", *options]
    done = subprocess.run(
        [*argv, f"{source}/", f"{restored}/"],
        stdout=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        check=True,
    )
    return done.stdout


def copy(source: Path, target: Path) -> None:
    """Copy a tree with all its metadata, to compare with later."""
    subprocess.run(["cp", "-a", source, target], check=True)
