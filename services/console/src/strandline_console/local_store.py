"""A store of this machine: where its folder is, and the store's own tools, run beside it."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from strandline_console.errors import ConsoleError, NoSuchThing
from strandline_console.nearest import nearest

DEFAULT_STORE = "store-1"


class NotLocal(ConsoleError):
    """The store does not run on this machine."""

    code = "console.not_local"
    hint = "Run this on the machine of the store, with --state naming the folder of its stack."


class ToolFailed(ConsoleError):
    """A tool of the store has refused or failed; the message is its own."""

    code = "store.error"


def local_store(state: Path, store: str) -> tuple[str, Path]:
    """Return the name of a store of the stack on `state` ("": its first) and its root folder.

    Raises NoSuchThing, NotLocal.
    """
    stores = _settings(state, "operator").get("stores") or [DEFAULT_STORE]
    if store and store not in stores:
        raise NoSuchThing(f"no store is called {store!r}", nearest=nearest(store, stores))
    store = store or stores[0]
    settings = _settings(state, store)
    root = settings.get("root") or str(Path(settings.get("state_dir", "")) / "store")
    if not (Path(root) / "store.json").exists():
        raise NotLocal(f"{root} is not the folder of a store")
    return store, Path(root)


def run_tool(module: str, *arguments: str | Path) -> dict[str, Any]:
    """Run a tool of the package strandline-replica-store to its end; return its document.

    Raises ToolFailed with what the tool says.
    """
    argv = [sys.executable, "-m", f"strandline_replica_store.{module}", *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    try:
        document: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError as error:
        last = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        missing = "No module named" in last
        raise ToolFailed(
            f"the store's own tool failed: {last}",
            hint="Install strandline-replica-store here." if missing else "",
        ) from error
    if "error" in document:
        told = document["error"]
        raise ToolFailed(told["message"], code=told["code"], hint=told["hint"])
    return document


def _settings(state: Path, unit: str) -> dict[str, Any]:
    path = state / "config" / f"{unit}.toml"
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except PermissionError as error:
        raise NotLocal(
            f"the stack on {state} belongs to another user",
            hint="Run this as that user or as root.",
        ) from error
    except FileNotFoundError as error:
        raise NotLocal(f"{path} is not there") from error
