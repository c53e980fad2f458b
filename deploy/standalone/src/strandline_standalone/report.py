"""What a detached supervisor tells the command that started it, once, over a pipe."""

from __future__ import annotations

from typing import Any

import msgspec


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    message: str
    hint: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Either the summary of a stack that is up, or why it is not."""

    summary: dict[str, Any] = {}
    failure: Failure | None = None


def encode_report(report: Report) -> bytes:
    return msgspec.json.encode(report)


def decode_report(data: bytes) -> Report | None:
    """Return the report, or None when the supervisor died before it had written one."""
    try:
        return msgspec.json.decode(data, type=Report)
    except msgspec.DecodeError:
        return None
