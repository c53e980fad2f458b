"""A server's assignment, read from the policy bucket and believed only when signed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from strandline_contracts.codec import decode
from strandline_contracts.errors import BadMessage
from strandline_contracts.policy import Assignment, server_key
from strandline_contracts.signing import Authority, Signed, verify
from strandline_contracts.subjects import POLICY_STREAM, policy_subject
from strandline_runtime.bus import Bus
from strandline_runtime.errors import SettingsError


async def read_assignment(
    bus: Bus, server: str, trusted: Mapping[bytes, Authority]
) -> Assignment | None:
    """Return the assignment of `server`, or None when there is none (or it was deleted).

    Raises BusError, BadMessage, BadSignature.
    """
    data = await bus.last(POLICY_STREAM, policy_subject(server_key(server)))
    return accept_assignment(data, server, trusted) if data else None


def accept_assignment(data: bytes, server: str, trusted: Mapping[bytes, Authority]) -> Assignment:
    """Return the assignment that `data` holds if it is signed and that of `server`."""
    signed = decode(data, Signed)
    verify(signed, "policy", trusted)
    assignment = decode(signed.body, Assignment)
    if assignment.server != server:
        raise BadMessage(f"the assignment of {assignment.server!r} lies under {server!r}")
    return assignment


def trusted_keys(path: Path) -> dict[bytes, Authority]:
    """Return whose signatures count: public key (32 bytes) to authority. Raises SettingsError."""
    try:
        named = msgspec.json.decode(path.read_bytes(), type=dict[str, Authority])
        keys = {bytes.fromhex(key): authority for key, authority in named.items()}
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise SettingsError(f"trusted_keys {path}: {error}") from error
    if any(len(key) != 32 for key in keys):
        raise SettingsError(f"trusted_keys {path}: a public key has 32 bytes")
    return keys
