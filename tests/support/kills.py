"""A tree under protection whose every recovery point has a copy, while processes are killed."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

from support.stack import PROCESSES, Stack, copy, differences, until

NAME = "killed"
SUPERVISOR = "supervisor"
_NOT_TAKEN = ("no stack is up", "the bus went away")
COMMAND_WITHIN_S = 300
"""What is killed again and again is started again after half a minute, each time."""
VICTIMS = (*sorted(PROCESSES), SUPERVISOR)


class KilledSource:
    """`kept` are the recovery points that have a copy, to be compared with what is restored."""

    def __init__(self, stack: Stack, rng: random.Random, *, files: int, most_bytes: int) -> None:
        self.stack = stack
        self.rng = rng
        self.most_bytes = most_bytes
        self.data = stack.work / "data"
        self.kept: list[int] = []
        self._deleted: list[int] = []
        for number in range(files):
            path = self.data / f"folder-{number % 5}" / f"{number}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(path)
        stack.json("protect", self.data, "--name", NAME, "--server", "here", "--wait")
        self.keep()

    def _write(self, path: Path) -> None:
        path.write_bytes(self.rng.randbytes(self.rng.randrange(self.most_bytes)))

    def change(self) -> None:
        """Rewrite most files, rename a folder, add and delete one."""
        files = sorted(self.data.glob("*/*.bin"))
        for path in files:
            if self.rng.random() < 0.8:
                self._write(path)
        self.rng.choice(files).unlink()
        folder = self.rng.choice(sorted(self.data.iterdir()))
        folder.rename(self.data / f"folder-{self.rng.randrange(10**9)}")
        self._write(self.rng.choice(sorted(self.data.iterdir())) / f"{self.rng.random()}.bin")

    def keep(self) -> None:
        """Copy the tree as that of the newest recovery point."""
        newest = self.stack.points(NAME)[-1]["number"]
        copy(self.data, self._copy(newest))
        self.kept.append(newest)

    def _copy(self, point: int) -> Path:
        return self.stack.work / f"kept-{point}"

    def forget_oldest(self, keep: int) -> None:
        """Drop copies but those of the newest points, for the disk's sake.

        A point that was deleted counts among the newest, as it may for the store.
        """
        oldest = max([*self.kept, *self._deleted]) - keep
        for point in [point for point in self.kept if point <= oldest]:
            self.deleted(point)

    def deleted(self, point: int) -> None:
        """Drop the copy of a recovery point, which need not be there any more."""
        self.kept.remove(point)
        self._deleted.append(point)
        subprocess.run(["rm", "-rf", self._copy(point)], check=True)

    def compare(self, point: int) -> None:
        """Restore a recovery point and compare it with its copy."""
        target = self.stack.work / "compared"
        self.stack.restore(NAME, point, target)
        self.is_copy_of(point, target)
        subprocess.run(["rm", "-rf", target], check=True)

    def is_copy_of(self, point: int, restored: Path) -> None:
        """Compare what was restored with the copy of its recovery point."""
        assert differences(self._copy(point), restored) == "", f"recovery point {point}"

    def kill(self, victim: str) -> None:
        """Kill one process; the supervisor's stack is brought up again."""
        if victim == SUPERVISOR:
            self.stack.kill_supervisor()
            self.stack.up()
        else:
            self.stack.kill(victim)

    def killed_amid(self, victim: str, *argv: str | Path, delay_s: float) -> bool:
        """Run a command that must succeed, and kill `victim` that long after its job has begun.

        Returns whether the job was still at work then.
        """
        known = {job.job for job in self.stack.open_jobs()}
        job = self.stack.start(*argv)
        self.stack.until_running()
        time.sleep(delay_s)
        amid = any(one.job not in known for one in self.stack.open_jobs())
        self.kill(victim)
        output, errors = job.communicate(timeout=COMMAND_WITHIN_S)
        assert job.returncode == 0, f"{victim}: {output}\n{errors}"
        until(lambda: self.stack.run("status").returncode == 0, "all services are back")
        return amid

    def killed_during(self, victim: str, *argv: str | Path, delay_s: float) -> bool:
        """Run a command to the store that must succeed, and kill `victim` meanwhile.

        Returns whether the command was still at work then.
        """
        job = self.stack.start(*argv)
        time.sleep(delay_s)
        amid = job.poll() is None
        self.kill(victim)
        output, errors = job.communicate(timeout=COMMAND_WITHIN_S)
        if victim == SUPERVISOR and any(text in errors for text in _NOT_TAKEN):
            # The whole stack was gone before the command was taken: it says so, and is given again.
            self.stack.json(*argv)
            amid = False
        else:
            assert job.returncode == 0, f"{argv}, {victim}: {output}\n{errors}"
        until(lambda: self.stack.run("status").returncode == 0, "all services are back")
        return amid
