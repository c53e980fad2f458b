"""Names and ids: what may be a token of a subject, and how ids are made."""

from __future__ import annotations

import re
import secrets
from typing import Literal

from blake3 import blake3

from strandline_contracts.errors import BadName

Role = Literal["provisioner", "operator", "scheduler", "store", "agent", "catalog", "monitor"]

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_LABEL_MAX_BYTES = 128


def token(value: str) -> str:
    """Return `value` if it can stand between two dots of a subject, else raise BadName."""
    if not _TOKEN.match(value):
        raise BadName(f"not a valid name on the bus: {value!r}")
    return value


def label(value: str) -> str:
    """Return `value` if a person may call a data source so, else raise BadName.

    A label is 1 to 128 bytes of UTF-8 without control characters and without a slash.
    """
    size_bytes = len(value.encode("utf-8", "surrogateescape"))
    if not 1 <= size_bytes <= _LABEL_MAX_BYTES or "/" in value or not value.isprintable():
        raise BadName(
            f"not a valid name for a data source: {value!r}",
            hint="Use 1 to 128 bytes of printable characters, no slash.",
        )
    return value


def server_from_hostname(hostname: str) -> str:
    """Return the bus name of a host: its name with each foreign character made a dash."""
    return token(re.sub(r"[^A-Za-z0-9_-]", "-", hostname)[:64] or "server")


def caller(role: Role, instance: str) -> str:
    """Return the token by which a credential is known in subjects and inboxes."""
    return f"{role}-{token(instance)}"


def new_source_id() -> str:
    """Return a random id for a data source: 16 hexadecimal digits."""
    return secrets.token_hex(8)


def new_job_id() -> str:
    """Return a random id for a job that a person asked for: 32 hexadecimal digits."""
    return secrets.token_hex(16)


def scheduled_job_id(source: str, kind: str, scheduled_at_ns: int) -> str:
    """Return the id of a scheduled job: the same for every scheduler that emits the occurrence."""
    return blake3(f"{source}\0{kind}\0{scheduled_at_ns}".encode()).hexdigest(length=16)
