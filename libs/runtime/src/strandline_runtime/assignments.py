"""A server's assignment, read from the policy bucket and believed only when signed."""

from __future__ import annotations

from collections.abc import Mapping

from strandline_contracts.errors import BadMessage
from strandline_contracts.policy import Assignment, accept_policy, server_key
from strandline_contracts.signing import Authority
from strandline_contracts.subjects import POLICY_STREAM, policy_subject
from strandline_runtime.bus import Bus


async def read_assignment(
    bus: Bus, server: str, trusted: Mapping[bytes, Authority]
) -> Assignment | None:
    """Return the assignment of `server`, or None when there is none (or it was deleted).

    Raises BusError, BadMessage, BadSignature.
    """
    subject = policy_subject(server_key(server))
    data = await bus.last(POLICY_STREAM, subject)
    if not data:
        return None
    document = accept_policy(data, subject, trusted)
    if not isinstance(document, Assignment):
        raise BadMessage(f"{subject} holds no assignment")
    return document
