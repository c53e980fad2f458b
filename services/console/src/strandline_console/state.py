"""Which stack a command speaks to: the state folder, and the operator's settings in it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from strandline_console.errors import ConsoleError, NotUp

VARIABLE = "STRANDLINE_STATE"
ROOT_STATE = Path("/var/lib/strandline")


def state_folder(option: str) -> Path:
    """Return the state folder: `option`, else STRANDLINE_STATE, else the default of this user."""
    chosen = option or os.environ.get(VARIABLE, "")
    return Path(chosen).absolute() if chosen else default_folder()


def default_folder() -> Path:
    """Return /var/lib/strandline for root, else strandline in the user's state folder (XDG)."""
    if os.geteuid() == 0:
        return ROOT_STATE
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base else Path.home() / ".local" / "state") / "strandline"


def operator_config(folder: Path) -> Path:
    """Return the operator's settings file of the stack that is up on `folder`.

    Raises NotUp, ConsoleError.
    """
    try:
        alive = (folder / "run" / "endpoint.json").exists() and _is_supervised(folder)
    except FileNotFoundError as error:
        raise NotUp(f"no stack is up on {folder}") from error
    except PermissionError as error:
        raise ConsoleError(
            f"the stack on {folder} belongs to another user",
            code="console.not_yours",
            hint="Run this as that user or as root.",
        ) from error
    if not alive:
        raise NotUp(f"no stack is up on {folder}")
    return folder / "config" / "operator.toml"


def _is_supervised(folder: Path) -> bool:
    """Tell whether a supervisor holds the folder's lock."""
    fd = os.open(folder / "run" / "lock", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
