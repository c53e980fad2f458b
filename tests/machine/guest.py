"""Runs inside the machine: a store's whole work on a replica, telling each promise on the line.

It never ends: the host cuts the power. The environment is the kernel's command line: SEED of the
source, BOOT (how many times the machine was started), and LEFT_OUT, names of functions of
durable.py, with commas, that are to do nothing: what the host must then find.
"""

from __future__ import annotations

import json
import os
import termios
import traceback
from pathlib import Path
from typing import Any

from machine.source import Source, job_of
from strandline_replica_store.compaction.compact import compact
from strandline_replica_store.errors import Aborted
from strandline_replica_store.files import durable
from strandline_replica_store.store.leases import LEASE_S, Leases
from support.workload import Workload

FOLDER = Path("/vault/replica")
LINE = "/dev/ttyS0"
KEPT_POINTS = 12
"""More are dropped, so that the host can restore them all after each cut."""


class Line:
    """The serial line, on which all that was said has left the machine when `say` returns."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_NOCTTY)

    def say(self, words: dict[str, Any]) -> None:
        data = json.dumps(words).encode() + b"\n"
        while data:
            data = data[os.write(self._fd, data) :]
        termios.tcdrain(self._fd)


class Life:
    """What goes on between a start and the next cut."""

    def __init__(self, line: Line, seed: str, boot: str) -> None:
        self._line = line
        self._source = Source(seed)
        self._workload = Workload(FOLDER, f"{seed}-{boot}", line.say)
        self._rng = self._workload.rng
        self._workload.kept = self._workload.replica.points()
        now_ns = 0
        self._leases = Leases(lambda: now_ns)
        now_ns = 2 * int(LEASE_S * 1e9)

    def go_on(self) -> None:
        """Receive a job, or a part of one, then look after the replica."""
        self._receive()
        kept = self._workload.kept
        if len(kept) > KEPT_POINTS or (len(kept) > 2 and self._rng.random() < 0.1):
            count = self._rng.randrange(1, len(kept) // 2 + 1)
            self._workload.drop_points(sorted(self._rng.sample(kept[:-1], count)))
        what = self._rng.random()
        if what < 0.2:
            self._compact()
        elif what < 0.25:
            self._workload.rewrite()
        elif what < 0.3:
            self._workload.reopen()

    def _receive(self) -> None:
        workload = self._workload
        replica, newest = workload.replica, workload.replica.newest
        number = newest.number + 1 if newest else 1
        row = replica.open_attempt
        if row is not None and self._rng.random() < 0.8:
            made, start = self._source.shipment(number, row.attempt), row.durable
        else:
            known = replica.job(job_of(number))
            made, start = self._source.shipment(number, known.attempt + 1 if known else 1), 0
            self._line.say({"ended": made.job})
            workload.open_job(made)
        end = len(made.messages)
        if self._rng.random() < 0.2:
            part = self._rng.randint(start, end)
            workload.ship(made, part, start)
            workload.fail(made, Aborted("given up"))
            return
        middle = self._rng.randint(start, end)
        workload.ship(made, middle, start)
        if self._rng.random() < 0.2:
            self._compact()
        workload.ship(made, end, middle)
        workload.finish(made, self._source.tree(number))

    def _compact(self) -> None:
        self._line.say({"compacting": True})
        report = compact(self._workload.replica, self._leases, force=self._rng.random() < 0.5)
        assert report.is_complete, report.reason
        self._line.say({"compacted": report.text()})


def main() -> None:
    """Live until the power is cut."""
    for name in filter(None, os.environ["LEFT_OUT"].split(",")):
        setattr(durable, name, lambda _: None)
    line = Line(LINE)
    try:
        life = Life(line, os.environ["SEED"], os.environ["BOOT"])
        while True:
            life.go_on()
    except Exception:
        line.say({"failed": traceback.format_exc()})
        raise


if __name__ == "__main__":
    main()
