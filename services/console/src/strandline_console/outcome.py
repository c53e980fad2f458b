"""How a command ends: its output on stdout, what went wrong on stderr, and the exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from strandline_console.errors import FAILED
from strandline_contracts.errors import StrandlineError


@contextmanager
def exit_on_error(*, as_json: bool) -> Iterator[None]:
    """Turn an error that we foresaw into its text, its JSON document and its exit code.

    It holds for every command, those of other distributions included.
    """
    try:
        yield
    except StrandlineError as error:
        say(f"strandline: {error.message}")
        if error.hint:
            say(f"  {error.hint}")
        if as_json:
            print_document({"error": error_document(error)})
        sys.exit(getattr(error, "exit_code", FAILED))


def error_document(error: StrandlineError) -> dict[str, Any]:
    document: dict[str, Any] = {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "retryable": error.retryable,
    }
    nearest = getattr(error, "nearest", None)
    if nearest:
        document["nearest"] = nearest
    return document


def print_document(document: object) -> None:
    """Print the one JSON document of a command."""
    encoded = msgspec.json.format(msgspec.json.encode(document), indent=2)
    sys.stdout.write(encoded.decode() + "\n")
    sys.stdout.flush()


def print_line(document: object) -> None:
    """Print one JSON document of a stream of them (--follow)."""
    sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """Tell the person something that is no output."""
    print(text, file=sys.stderr, flush=True)
