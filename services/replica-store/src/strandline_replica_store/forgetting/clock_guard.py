"""Whether the store's clock may end a life: judged by an anchor, a high-water mark, the boot.

    python -m strandline_replica_store.forgetting.clock_guard ROOT [--accept]

tells how the clock of the store in ROOT stands, and lets a person on that machine say that it is
right. It prints one JSON document: that, or the error. `strandline store clock` uses it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import msgspec

from strandline_contracts.errors import StrandlineError
from strandline_replica_store.errors import Damaged, NotAllowed, translated
from strandline_replica_store.files import checked_json, durable

SECOND_NS = 1_000_000_000
TOLERANCE_NS = 60 * SECOND_NS
TOLERANCE_SHARE = 1000
"""The clock may differ by TOLERANCE_NS and one part in so many of the time since the anchor."""
MAX_OFF_NS = 30 * 86_400 * SECOND_NS
"""A machine that comes up again was off for no longer, as far as we believe its clock."""
NOTE_EVERY_NS = 60 * SECOND_NS
"""So often the high-water mark is written."""
ACCEPT_WITHIN_NS = 3600 * SECOND_NS
"""A person's word about the clock counts for so long."""


class Reading(NamedTuple):
    """A look at the clocks: the wall's, the one since boot (it never jumps), and which boot."""

    wall_ns: int
    boottime_ns: int
    boot_id: str


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What clock.json holds.

    `wall_ns`, `boottime_ns` and `boot_id` are the anchor: the first look of this boot that was
    believed. `highest_ns` is the latest wall time that was believed. `doubt` says why the clock
    is not believed now, empty when it is.
    """

    format: int = 1
    wall_ns: int
    boottime_ns: int
    boot_id: str
    highest_ns: int
    doubt: str = ""


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """What clock.accept holds: a person said that the clock was right at this look."""

    wall_ns: int
    boottime_ns: int
    boot_id: str


LONG_AGO = Accepted(wall_ns=0, boottime_ns=0, boot_id="")


def judge(mark: Mark | None, now: Reading) -> Mark:
    """Return the mark after a look at the clock; its `doubt` says whether to believe it.

    The anchor stays for a whole boot: a clock that is pushed a little at every look is caught as
    one that jumps is. A small step is forgiven in time, as the tolerance grows with it.
    """
    if mark is None:
        return anchored(now)
    doubt = _doubt(mark, now)
    if doubt:
        return msgspec.structs.replace(mark, doubt=doubt)
    highest_ns = max(mark.highest_ns, now.wall_ns)
    if mark.boot_id != now.boot_id:
        return msgspec.structs.replace(anchored(now), highest_ns=highest_ns)
    return msgspec.structs.replace(mark, highest_ns=highest_ns, doubt="")


LOST = Mark(wall_ns=0, boottime_ns=0, boot_id="", highest_ns=0)
"""Stands for a clock.json that is damaged: only a person can say that the clock is right."""


def anchored(now: Reading) -> Mark:
    """Return the mark that begins with a look that is believed whatever was before."""
    return Mark(
        wall_ns=now.wall_ns,
        boottime_ns=now.boottime_ns,
        boot_id=now.boot_id,
        highest_ns=now.wall_ns,
    )


def _doubt(mark: Mark, now: Reading) -> str:
    if not mark.highest_ns:
        return "clock.json is damaged: what the store knew of the time is lost"
    behind_ns = mark.highest_ns - now.wall_ns
    if behind_ns > TOLERANCE_NS:
        return f"the clock is {_span(behind_ns)} behind the latest time that the store has seen"
    if mark.boot_id != now.boot_id:
        ahead_ns = now.wall_ns - mark.highest_ns
        if ahead_ns > MAX_OFF_NS:
            return f"after a reboot the clock is {_span(ahead_ns)} ahead"
        return ""
    elapsed_ns = now.boottime_ns - mark.boottime_ns
    off_ns = now.wall_ns - (mark.wall_ns + elapsed_ns)
    if abs(off_ns) > TOLERANCE_NS + elapsed_ns // TOLERANCE_SHARE:
        return f"the clock has jumped by {_span(abs(off_ns))} {'ahead' if off_ns > 0 else 'back'}"
    return ""


def _span(length_ns: int) -> str:
    """Return a length for a person, coarse enough to stay the same from look to look."""
    for name, size_ns in (("days", 86_400 * SECOND_NS), ("hours", 3600 * SECOND_NS)):
        if length_ns >= 2 * size_ns:
            return f"{length_ns // size_ns} {name}"
    return f"{length_ns // SECOND_NS} seconds"


def receipt_ns(mark: Mark | None, now: Reading) -> int:
    """Return the time of receipt of what comes now: the latest that it can be.

    A clock that was set back, or is yet to be set, must not make new recovery points look old: of
    the wall clock, the time that should be by the anchor and the highest, the latest counts. One
    that is too late makes them live longer.
    """
    if mark is None:
        return now.wall_ns
    same_boot = mark.boot_id == now.boot_id
    due_ns = mark.wall_ns + now.boottime_ns - mark.boottime_ns if same_boot else 0
    return max(now.wall_ns, mark.highest_ns, due_ns)


def agrees(accepted: Accepted, now: Reading) -> bool:
    """Tell whether what a person accepted is still the clock that is seen now."""
    elapsed_ns = now.boottime_ns - accepted.boottime_ns
    if accepted.boot_id != now.boot_id or not 0 <= elapsed_ns <= ACCEPT_WITHIN_NS:
        return False
    return abs(now.wall_ns - accepted.wall_ns - elapsed_ns) <= TOLERANCE_NS


def read_clocks() -> Reading:
    """Look at this machine's clocks."""
    return Reading(time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), _boot_id())


@cache
def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


class ClockGuard:
    """The guard of one store's clock. Methods block and may be called from any thread.

    `tell` is called with the doubt, empty when the clock is trusted again, before that is
    remembered: after a crash it may be called once more.
    """

    def __init__(
        self,
        root: str,
        tell: Callable[[str, int], None],
        *,
        look: Callable[[], Reading] = read_clocks,
    ) -> None:
        self._path = _mark_path(root)
        self._accept_path = _accept_path(root)
        self._tell = tell
        self._look = look
        self._lock = threading.Lock()
        self._mark = read_mark(root)
        self._written_ns = self._mark.highest_ns if self._mark else 0

    def now_ns(self) -> int | None:
        """Return the time, or None while the clock is not to be believed. Raises OSError."""
        with self._lock:
            now = self._look()
            before = self._mark.doubt if self._mark else ""
            mark = judge(self._mark, now)
            accepted = _read_accepted(self._accept_path)
            if accepted is not None and agrees(accepted, now):
                mark = anchored(now)
            if bool(mark.doubt) != bool(before):
                self._tell(mark.doubt, now.wall_ns)
            self._note(mark)
            if accepted is not None:
                durable.remove(self._accept_path)
            return None if mark.doubt else now.wall_ns

    def receipt_ns(self) -> int:
        """Return the time of receipt of what comes now; see the function of this name."""
        return receipt_ns(self._mark, self._look())

    def _note(self, mark: Mark) -> None:
        """Write the mark when it says something new, or the high-water mark has risen enough."""
        before, self._mark = self._mark, mark
        risen_ns = mark.highest_ns - self._written_ns
        same = before is not None and mark == msgspec.structs.replace(
            before, highest_ns=mark.highest_ns
        )
        if not same or not 0 <= risen_ns < NOTE_EVERY_NS:
            checked_json.write(self._path, mark)
            self._written_ns = mark.highest_ns


def _mark_path(root: str) -> str:
    return os.path.join(root, "clock.json")


def _accept_path(root: str) -> str:
    return os.path.join(root, "clock.accept")


def read_mark(root: str) -> Mark | None:
    """Return what clock.json of a store's root says; None where there is none. Raises OSError."""
    try:
        return checked_json.read(_mark_path(root), Mark)
    except Damaged:
        return LOST


def accept(root: str, *, look: Callable[[], Reading] = read_clocks) -> None:
    """Say that this machine's clock is right; safe beside a running store.

    The store sees it when it next looks, within an hour, and anchors there. To be called as the
    user who owns the root. Raises OSError.
    """
    checked_json.write(_accept_path(root), Accepted(**look()._asdict()))


def _read_accepted(path: str) -> Accepted | None:
    try:
        return checked_json.read(path, Accepted)
    except Damaged:
        return LONG_AGO


def main(arguments: list[str]) -> int:
    """Print how the clock of the store in ROOT stands; with --accept, first say it is right."""
    if len(arguments) not in (1, 2) or arguments[1:] not in ([], ["--accept"]):
        sys.stderr.write(__doc__ or "")
        return 2
    try:
        with translated():
            found = _tell(arguments[0], accepting=bool(arguments[1:]))
    except StrandlineError as error:
        told = {"code": error.code, "message": error.message, "hint": error.hint}
        sys.stdout.write(json.dumps({"error": told}) + "\n")
        return 1
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


def _tell(root: str, *, accepting: bool) -> dict[str, object]:
    if not os.path.exists(os.path.join(root, "store.json")):
        raise NotAllowed(f"{root} is not the folder of a store", hint="Name that of store.json.")
    if accepting:
        owner = os.stat(root).st_uid
        if os.geteuid() != owner:
            raise NotAllowed(
                f"the store at {root} belongs to user {owner}", hint="Run this as that user."
            )
        accept(root)
    now = read_clocks()
    mark = judge(read_mark(root), now)
    return {
        "doubt": "" if accepting else mark.doubt,
        "wall_ns": now.wall_ns,
        "highest_ns": mark.highest_ns,
        "accepted": accepting,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
