"""Two locks of a state folder: who supervises it, and whether anything of a stack is alive.

`run/lock` belongs to the supervisor alone. The open file of `run/alive` is inherited by every
process of the stack, so its lock is free only when the last of them is gone.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from pathlib import Path

from strandline_standalone.errors import AlreadyUp, BadStateFolder, StandaloneError

_POLL_S = 0.02
_OTHERS_LOOK_S = 0.3
"""So long may a command that only looks whether somebody is there hold the lock."""


def lock_supervisor(run: Path) -> int:
    """Take the supervisor's lock and return its descriptor, which also holds our process id.

    Raises AlreadyUp.
    """
    fd = os.open(run / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    if not _wait_for_lock(fd, _OTHERS_LOOK_S):
        pid = os.pread(fd, 32, 0).decode().strip()
        os.close(fd)
        raise AlreadyUp(
            f"a stack is already up on {run.parent} (supervisor's process id {pid or 'unknown'})"
        )
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def lock_alive(run: Path, wait_s: float) -> int:
    """Wait until the former stack's last process is gone; return the descriptor to be inherited.

    Raises BadStateFolder.
    """
    fd = os.open(run / "alive", os.O_RDWR | os.O_CREAT, 0o600)
    if not _wait_for_lock(fd, wait_s):
        os.close(fd)
        raise BadStateFolder(
            f"processes of a former stack on {run.parent} are still alive after {wait_s:g} s",
            hint=f"End the ones that `fuser {run / 'alive'}` lists, then try again.",
        )
    return fd


def stop_supervisor(run: Path, wait_s: float) -> bool:
    """Ask the supervisor to end and wait until its stack is gone; False when there was none."""
    try:
        fd = os.open(run / "lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        if _wait_for_lock(fd, 0):
            return False
        _signal_holder(fd)
        if not _wait_for_lock(fd, wait_s):
            raise StandaloneError(
                f"the stack on {run.parent} is still stopping after {wait_s:g} s",
                hint="See logs/supervisor.log; then try again.",
            )
    finally:
        os.close(fd)
    alive = lock_alive(run, wait_s)
    os.close(alive)
    return True


def _signal_holder(fd: int) -> None:
    """Send SIGTERM to the process whose id the lock file holds, and to no other."""
    text = os.pread(fd, 32, 0).decode().strip()
    if not text.isdigit():
        raise StandaloneError("the supervisor has only just begun", hint="Try again.")
    try:
        holder = os.pidfd_open(int(text))
    except ProcessLookupError:
        return
    try:
        # The lock is held while the descriptor is open: the id was not given to somebody else.
        if not _wait_for_lock(fd, 0):
            signal.pidfd_send_signal(holder, signal.SIGTERM)
    except PermissionError as error:
        raise StandaloneError(
            "the stack belongs to another user", hint="Run this as that user or as root."
        ) from error
    finally:
        os.close(holder)


def _wait_for_lock(fd: int, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        else:
            return True
