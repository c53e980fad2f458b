"""Every moment at which the power may fail: what was promised then is found afterwards.

A workload runs once, its system calls recorded (support/recorded_disk.py). For each prefix of
them the folder is made as a loss of power would leave it, in several ways, and opened by the real
code: as it is, again, going on with work, and with the index deleted.

STRANDLINE_SEED repeats what another run has printed; in `make soak` STRANDLINE_SCRIPTS says how
many made-up workloads are recorded and crashed.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3

from strandline_replica_store.replica.rules import OpenVerdict
from support.recorded_disk import Disk, Image, calls, record, said, write_image
from support.replicas import SERVER, batch, end_of, inode, open_of
from support.source_model import Shipment
from support.workload import Found, Promises, look, open_again, read_points

STEPS = [
    *("commit", "commit", "small", "failed", "full", "fenced", "interrupted", "reopen"),
    *("drop", "drop", "rewrite", "compact", "compact", "reindex", "damaged"),
]
SOAK_SCRIPTS = int(os.environ.get("STRANDLINE_SCRIPTS", "20"))
SOAK_STEPS = 14
SOAK_TORN = 6
RECENT = 12
"""So many steps before a moment at which something is wrong are shown."""
TESTS = Path(__file__).parents[1]
SEED = os.environ.get("STRANDLINE_SEED", "1")
SCRIPTS = {
    "receiving": "commit commit small interrupted failed reopen commit fenced full small commit",
    "dropping": "commit small commit drop small commit drop rewrite commit reopen drop small",
    "compacting": "commit commit commit drop compact small failed compact drop commit compact",
    "reindexing": "commit small reindex commit drop reindex small damaged commit",
}


class Crashes:
    """Opens what is left after crashes, each different folder once."""

    def __init__(self, folder: Path, shipments: dict[tuple[str, int], Shipment]) -> None:
        self._folder = folder
        self._shipments = shipments
        self._found: dict[bytes, tuple[Found, Found]] = {}
        self.moments = 0
        self.judged = 0

    @property
    def different(self) -> int:
        return len(self._found)

    def judge(self, image: Image, promises: Promises) -> list[str]:
        """Return what is wrong with a folder, given what was promised before the crash."""
        self.judged += 1
        key = _key(image)
        if key not in self._found:
            try:
                self._found[key] = self._opened(image)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what was found
                return [f"{error!r} from {traceback.format_exception(error)[-3]}"]
        found, rebuilt = self._found[key]
        wrong = promises.broken_by(found)
        # Without the index nothing is known of a job that was being received.
        return wrong + [f"rebuilt: {w}" for w in promises.broken_by(rebuilt, resumable=False)]

    def _opened(self, image: Image) -> tuple[Found, Found]:
        folder = self._folder / f"{len(self._found)}"
        write_image(image, folder)
        found = look(folder / "replica")
        self._goes_on(folder / "replica", found)
        shutil.rmtree(folder)
        # The index is deleted where the crash left it, not where the first opening did.
        bare: Image = {p: d for p, d in image.items() if not p.startswith("replica/index.db")}
        write_image(bare, folder)
        rebuilt = look(folder / "replica")
        shutil.rmtree(folder)
        return found, rebuilt

    def _goes_on(self, folder: Path, found: Found) -> None:
        """A second opening finds the same; the open job, or a new one, can be finished."""
        replica = open_again(folder)
        row = replica.open_attempt
        assert (row and (row.job, row.attempt, row.durable)) == found.job
        if found.job is not None:
            job, attempt, durable = found.job
            made = self._shipments[job, attempt]
            for message in made.messages[durable:]:
                replica.take(job, attempt, [message])
            point, state = replica.finish(made.end), made.state
        else:
            messages = [batch("next", 0, 1, inodes=[inode(1, kind="d", mode=0o711)])]
            assert replica.open_job(SERVER, open_of(replica, "next")) is OpenVerdict.FRESH
            replica.take("next", 1, messages)
            point, state = replica.finish(end_of("next", messages)), ""
        replica.close()
        points = read_points(folder)
        newest = points.pop(point.number)
        assert points == found.points
        assert newest == state or not state


def _way(position: int) -> str:
    ways = ["all there", "only what lasts", "what lasts, all names", "what lasts, all bytes"]
    return ways[position] if position < len(ways) else "torn"


def _key(image: Image) -> bytes:
    key = blake3()
    for path, data in sorted(image.items()):
        key.update(b"%s\0%d\0" % (path.encode(), -1 if data is None else len(data)))
        key.update(data or b"")
    return key.digest()


def images(disk: Disk, seed: str, torn: int) -> Iterator[Image]:
    """Yield what may be found at this moment."""
    yield disk.everything()
    yield disk.lasting()
    yield disk.lasting(names=True)
    yield disk.lasting(data=True)
    for number in range(torn):
        yield disk.torn(random.Random(f"{seed}-{number}"))


def explore(
    memory: Path, script: str, seed: str, torn: int, left_out: Sequence[str] = ()
) -> Crashes:
    """Run a script under the recorder, then crash it at every moment.

    Functions of durable.py that are left out do nothing in the run that is recorded.
    """
    began = time.monotonic()
    root, log, shipped = memory / "disk", memory / "calls", memory / "shipped"
    root.mkdir()
    child = [sys.executable, str(Path(__file__).parent / "recorded_child.py")]
    argv = [*child, str(root / "replica"), seed, script, str(shipped), *left_out]
    record(argv, log, {"PYTHONPATH": str(TESTS)})
    made = msgspec.msgpack.decode(shipped.read_bytes(), type=list[Shipment])
    disk, promises = Disk(root), Promises()
    crashes = Crashes(memory, {(one.job, one.attempt): one for one in made})
    recent: deque[str] = deque(maxlen=RECENT)
    for call in calls(log):
        told = said(call)
        for words in told:
            promises.hear(words)
        if not (disk.feed(call) or told):
            continue
        crashes.moments += not told
        recent.append(f"{told or disk.last}")
        for position, image in enumerate(images(disk, f"{seed}-{crashes.moments}", torn)):
            wrong = crashes.judge(image, promises)
            if wrong:
                before = "\n".join(recent)
                pytest.fail(f"moment {crashes.moments}, {_way(position)}: {wrong}, after\n{before}")
    assert promises.must == promises.may, "the last folder holds exactly what was promised"
    print(
        f"\nseed {seed}: {crashes.moments} moments, {crashes.judged} crashes judged,"
        f" {crashes.different} different folders, {time.monotonic() - began:.0f} s"
    )
    return crashes


@pytest.mark.root
@pytest.mark.parametrize("script", SCRIPTS)
def test_power_fails_at_every_moment(memory: Path, script: str) -> None:
    crashes = explore(memory, SCRIPTS[script], SEED, torn=1)
    assert crashes.different > 300


@pytest.mark.soak
def test_power_fails_at_every_moment_for_long(memory: Path) -> None:
    first = int(os.environ.get("STRANDLINE_SEED") or random.randrange(10**9))
    total = 0
    for seed in range(first, first + SOAK_SCRIPTS):
        rng = random.Random(seed)
        script = " ".join(["commit", "commit", *rng.choices(STEPS, k=SOAK_STEPS)])
        print(f"\n{script}", end="")
        folder = memory / str(seed)
        folder.mkdir()
        total += explore(folder, script, str(seed), SOAK_TORN).different
        shutil.rmtree(folder)
    print(f"{SOAK_SCRIPTS} scripts, {total} different folders, seeds from {first}")


@pytest.mark.root
@pytest.mark.parametrize("left_out", ["sync", "sync_folder"])
def test_a_step_that_is_left_out_is_noticed(memory: Path, left_out: str) -> None:
    with pytest.raises(pytest.fail.Exception) as noticed:
        explore(memory, "commit commit small", SEED, torn=2, left_out=[left_out])
    print(noticed.value)
