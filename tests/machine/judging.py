"""What is found on the disk after a cut, judged by the second reader and by the store itself."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw

from machine.source import Restored, Source, digest_of
from strandline_replica_store.checking.verify import verify
from strandline_replica_store.reading.reader import Reader
from support.source_model import state_of
from support.workload import Found, Promises, look, open_again

READER = Path(__file__).parents[2] / "reader" / "strandline_reader.py"


class Wrong(Exception):
    """The store, or the second reader, did not do what was promised."""

    def __init__(self, what: list[str]) -> None:
        super().__init__("\n".join(what))


def judge(image: Path, folder: Path, promises: Promises, source: Source) -> Found:
    """Return what is found on a copy of the disk, first as the cut left it. Raises Wrong."""
    copy = folder / "copy.img"
    shutil.copyfile(image, copy)
    try:
        with mounted(copy, folder / "mounted") as vault:
            replica = vault / "replica"
            numbers, wrong = _by_the_reader(replica, folder / "restored", source)
            try:
                found = look(replica)
                wrong += promises.broken_by(found)
                wrong += _by_the_store(replica, found, source)
            except Exception as error:
                raise Wrong([*wrong, "the store fails:", traceback.format_exc()]) from error
        if numbers != sorted(found.points):
            wrong.append(f"the reader finds points {numbers}, the store {sorted(found.points)}")
        wrong += _by_the_file_system(copy)
        if wrong:
            raise Wrong(wrong)
        return found
    finally:
        copy.unlink()


@contextlib.contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    """Mount an image; ext4 replays its journal."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def _by_the_reader(replica: Path, into: Path, source: Source) -> tuple[list[int], list[str]]:
    """Return which recovery points the second reader finds, and what is wrong with them."""
    if not (replica / "replica.json").exists():
        return [], []  # The cut came before there was a replica: the store says what was promised.
    code, points = _read("points", str(replica))
    wrong = [f"the reader: {points}"] if code else []
    numbers = sorted(point["number"] for point in points.get("points", []))
    code, checked = _read("verify", str(replica))
    if code or checked["findings"]:
        wrong.append(f"the reader: {checked}")
    for number in numbers:
        code, restored = _read("restore", str(replica), "--point", f"{number}", "--to", f"{into}")
        if code or dict(_lying_in(into)) != source.restored(number):
            wrong.append(f"the reader restores point {number} wrongly: {restored}")
        shutil.rmtree(into, ignore_errors=True)
    return numbers, wrong


def _read(command: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run the second reader with nothing of ours on its path."""
    argv = [sys.executable, "-I", str(READER), command, *arguments, "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    try:
        return done.returncode, json.loads(done.stdout)
    except json.JSONDecodeError:
        return done.returncode or 1, {"error": done.stdout + done.stderr}


def _lying_in(folder: Path) -> Iterator[tuple[bytes, Restored]]:
    top = os.fsencode(folder)
    for parent, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            mode = os.lstat(path).st_mode
            kind = "d" if stat.S_ISDIR(mode) else "f"
            digest = digest_of(Path(os.fsdecode(path)).read_bytes()) if kind == "f" else ""
            yield path[len(top) :], (kind, stat.S_IMODE(mode), digest)


def _by_the_store(folder: Path, found: Found, source: Source) -> list[str]:
    """Return what is wrong once the store has opened the replica, which then goes on."""
    replica = open_again(folder)
    try:
        with contextlib.closing(Reader(str(folder))) as reader:
            report = verify(reader, replica.newest)
        wrong = [f"verify: {damage}" for damage in report.damages]
        if reason := replica.inconsistent():
            wrong.append(f"the replica is inconsistent: {reason}")
        if damages := replica.on_database(_damages_told):
            wrong.append(f"{damages} damages were told of")
        if found.job is not None:
            job, attempt, durable = found.job
            number = max(found.points, default=0) + 1
            made = source.shipment(number, attempt)
            for message in made.messages[durable:]:
                replica.take(job, attempt, [message])
            replica.finish(made.end)
            with contextlib.closing(Reader(str(folder))) as reader:
                if state_of(reader, number) != made.state:
                    wrong.append(f"job {job}.{attempt} went on to a wrong recovery point")
        return wrong
    finally:
        replica.close()


def _damages_told(conn: apsw.Connection) -> int:
    row = conn.execute("SELECT sum(number) FROM outbox_numbers WHERE noun = 'damage'").fetchone()
    return (row and row[0]) or 0


def _by_the_file_system(image: Path) -> list[str]:
    """Return what e2fsck says: were it anything, the machine would be wrong, not the store."""
    argv = ["e2fsck", "-f", "-n", str(image)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return [f"the file system: {done.stdout}"] if done.returncode else []
