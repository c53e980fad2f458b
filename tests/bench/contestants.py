"""What is measured: Strandline and, where they are installed, its peers, behind one face."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Protocol


class Contestant(Protocol):
    name: str

    def prepare(self) -> None: ...
    def backup(self, source: Path) -> None: ...
    def restore(self, source: Path, target: Path) -> None: ...
    def verify(self) -> bool: ...
    def close(self) -> dict[str, str]: ...


def run(*argv: str | Path, env: dict[str, str] | None = None) -> str:
    """Run a command to its end; a failure shows what it said."""
    done = subprocess.run(
        [os.fspath(a) for a in argv],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.stderr.write(done.stdout[-2000:] + done.stderr[-4000:])
        raise SystemExit(f"{argv[0]} failed with {done.returncode}")
    return done.stdout


class Strandline:
    name = "strandline"

    def __init__(self, work: Path) -> None:
        self.state = work / "strandline"
        self.names: dict[Path, str] = {}
        self.command = Path(sys.executable).parent / "strandline"

    def _run(self, *argv: str | Path) -> str:
        return run(self.command, *argv, env={"STRANDLINE_STATE": str(self.state)})

    def prepare(self) -> None:
        self._run("up", "--detach")

    def backup(self, source: Path) -> None:
        if source in self.names:
            self._run("express-full", self.names[source], "--wait")
        else:
            self.names[source] = source.name
            self._run("protect", source, "--name", source.name, "--wait")

    def restore(self, source: Path, target: Path) -> None:
        self._run("restore", self.names[source], "--to", target, "--wait")

    def verify(self) -> bool:
        for name in self.names.values():
            self._run("verify", name, "--wait")
        return True

    def newest(self, source: Path) -> dict[str, int]:
        """Return the totals of the newest recovery point."""
        listed = json.loads(self._run("points", self.names[source], "--json"))
        point = max(listed["points"], key=lambda p: int(p["number"]))
        totals: dict[str, int] = point["totals"]
        return totals

    def close(self) -> dict[str, str]:
        peaks = peak_memory(self.state)
        self._run("down")
        return peaks


def peak_memory(state: Path) -> dict[str, str]:
    """Return the peak resident memory of each process of a stack, by what it runs."""
    peaks: dict[str, int] = {}
    needle = os.fsencode(state)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        if needle not in environ and needle not in b" ".join(argv):
            continue
        name = argv[2].decode() if b"-m" in argv[1:2] else os.path.basename(argv[0].decode())
        peak = next((line for line in status.splitlines() if line.startswith("VmHWM")), "VmHWM 0")
        peaks[name.split(":")[0]] = max(peaks.get(name, 0), int(peak.split()[1]))
    return {name: f"{kib / 1024:.0f} MiB" for name, kib in sorted(peaks.items())}


class Restic:
    name = "restic"

    def __init__(self, work: Path) -> None:
        self.repository = work / "restic"
        self.env = {
            "RESTIC_REPOSITORY": str(self.repository),
            "RESTIC_PASSWORD": "bench",
            "RESTIC_CACHE_DIR": str(work / "restic-cache"),
        }

    def prepare(self) -> None:
        run("restic", "init", "--repository-version", "2", env=self.env)

    def backup(self, source: Path) -> None:
        run("restic", "backup", "--quiet", source, env=self.env)

    def restore(self, source: Path, target: Path) -> None:
        run("restic", "restore", "latest", "--path", source, "--target", target, env=self.env)

    def verify(self) -> bool:
        run("restic", "check", "--read-data", env=self.env)
        return True

    def close(self) -> dict[str, str]:
        shutil.rmtree(self.repository)
        return {}


class Borg:
    name = "borg"

    def __init__(self, work: Path) -> None:
        self.repository = work / "borg"
        self.count = 0
        self.env = {
            "BORG_REPO": str(self.repository),
            "BORG_BASE_DIR": str(work / "borg-base"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }

    def prepare(self) -> None:
        run("borg", "init", "--encryption", "none", env=self.env)

    def backup(self, source: Path) -> None:
        self.count += 1
        run("borg", "create", f"::{source.name}-{self.count}", source, env=self.env)

    def restore(self, source: Path, target: Path) -> None:
        target.mkdir()
        argv = ["sh", "-c", f'cd "{target}" && borg extract ::{source.name}-{self.count}']
        run(*argv, env=self.env)

    def verify(self) -> bool:
        run("borg", "check", "--verify-data", env=self.env)
        return True

    def close(self) -> dict[str, str]:
        shutil.rmtree(self.repository)
        return {}


class Rsync:
    name = "rsync"

    def __init__(self, work: Path) -> None:
        self.copy = work / "rsync"

    def prepare(self) -> None:
        self.copy.mkdir()

    def backup(self, source: Path) -> None:
        run("rsync", "-aHAX", "--delete", "--inplace", "--no-whole-file", source, self.copy)

    def restore(self, source: Path, target: Path) -> None:
        run("cp", "-a", self.copy / source.name, target)

    def verify(self) -> bool:
        return False

    def close(self) -> dict[str, str]:
        shutil.rmtree(self.copy)
        return {}


def installed(work: Path) -> list[Contestant]:
    """Return Strandline and those of its peers that are on this machine."""
    found: list[Contestant] = [Strandline(work)]
    peers: list[tuple[str, type[Restic | Borg | Rsync]]] = [
        ("restic", Restic),
        ("borg", Borg),
        ("rsync", Rsync),
    ]
    found += [peer(work) for program, peer in peers if shutil.which(program)]
    return found


def stop_on_signal() -> None:
    """Turn SIGTERM into SystemExit, so that what was started is ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
