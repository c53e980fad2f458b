"""Which policies were in force lately: a policy that keeps less counts only after the delay.

`policies.json` in a replica's folder remembers them, so that a shorter retention or a released
hold, set by mistake or with a stolen key, can be taken back before anything is gone.
"""

from __future__ import annotations

import msgspec

from strandline_replica_store.errors import Damaged, StoreError
from strandline_replica_store.files import checked_json
from strandline_replica_store.forgetting.retention import Policy

MAX_POLICIES = 32
"""So many different policies of a source are remembered; with more nothing is forgotten."""


class TooManyPolicies(StoreError):
    """The policy of a source was changed more often than the store remembers."""

    code = "store.many_policies"
    hint = "Nothing is dropped until some of them are older than the store's delay."


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A policy that was in force until `until_ns` (the store's clock), 0 while it is."""

    policy: Policy
    until_ns: int = 0


class History(msgspec.Struct, frozen=True, kw_only=True):
    """What the store has seen of a source's policies since `began_ns`."""

    format: int = 1
    began_ns: int
    seen: list[Seen] = []


def noted(history: History | None, policy: Policy, now_ns: int, delay_ns: int) -> History:
    """Return the history once `policy` is the one in force. Raises TooManyPolicies."""
    if history is None:
        return History(began_ns=now_ns, seen=[Seen(policy=policy)])
    if any(each.policy == policy and not each.until_ns for each in history.seen):
        return history
    ended = [
        Seen(policy=each.policy, until_ns=each.until_ns or now_ns)
        for each in history.seen
        if each.policy != policy and not _is_over(each, now_ns, delay_ns)
    ]
    if len(ended) >= MAX_POLICIES:
        raise TooManyPolicies(f"{len(ended)} policies were in force lately")
    return History(began_ns=history.began_ns, seen=[*ended, Seen(policy=policy)])


def in_force(history: History, now_ns: int, delay_ns: int) -> list[Policy]:
    """Return the policies that were in force at any time of the last `delay_ns`."""
    return [each.policy for each in history.seen if not _is_over(each, now_ns, delay_ns)]


def spared_until_ns(history: History, now_ns: int, delay_ns: int) -> int:
    """Return up to when received points are spared, because nobody knows what policy they had.

    That is the time before the history, for as long as the delay lasts from its beginning.
    """
    return history.began_ns if now_ns < history.began_ns + delay_ns else -1


def _is_over(seen: Seen, now_ns: int, delay_ns: int) -> bool:
    return bool(seen.until_ns) and seen.until_ns + delay_ns <= now_ns


def read(path: str) -> History | None:
    """Return the history in a file; None where there is none that can be read.

    Then everything that is there is spared for the delay: see `spared_until_ns`. Raises OSError.
    """
    try:
        return checked_json.read(path, History)
    except Damaged:
        return None


def write(path: str, history: History) -> None:
    """Keep the history for good. Raises OSError."""
    checked_json.write(path, history)
