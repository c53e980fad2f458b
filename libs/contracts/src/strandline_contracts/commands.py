"""Commands: what a target is asked to do, and whether it may obey.

A command travels as `Signed(purpose="command", body=encode(Command))` on
`cmd.<role>.<instance>.<source>.<verb>`.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from strandline_contracts.codec import Message, decode
from strandline_contracts.errors import BadSignature
from strandline_contracts.signing import Authority, Signed, verify
from strandline_contracts.subjects import CommandSubject


class ExpressFull(msgspec.Struct, frozen=True, kw_only=True, tag="express_full"):
    """Ship what changed and make a recovery point."""


class Sync(msgspec.Struct, frozen=True, kw_only=True, tag="sync"):
    """Ship the logs; a source without logs makes a recovery point, as express_full does."""


class Check(msgspec.Struct, frozen=True, kw_only=True, tag="check"):
    """Compare source and replica wholly, by digest, and repair the replica."""


class Verify(msgspec.Struct, frozen=True, kw_only=True, tag="verify"):
    """Re-read and re-hash what the store holds of a source."""


class Delete(msgspec.Struct, frozen=True, kw_only=True, tag="delete"):
    """Delete recovery points of a source, or (none named) its whole replica.

    Takes effect when the store's own delay has passed; until then Undelete takes it back.
    """

    points: list[int] = []


class Undelete(msgspec.Struct, frozen=True, kw_only=True, tag="undelete"):
    """Take back a Delete: of these recovery points, or (none named) of all and of the replica."""

    points: list[int] = []


class Reindex(msgspec.Struct, frozen=True, kw_only=True, tag="reindex"):
    """Make the index of a replica anew from its manifests and segments."""


class Compact(msgspec.Struct, frozen=True, kw_only=True, tag="compact"):
    """Drop what retention lets go and rewrite segments now, whatever the thresholds say."""


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag="cancel"):
    """Cancel job `target`, whether it has started or not."""

    target: str


class Assign(msgspec.Struct, frozen=True, kw_only=True, tag="assign"):
    """The assignment of the server has changed: read it again."""


class Restore(msgspec.Struct, frozen=True, kw_only=True, tag="restore"):
    """Restore recovery point `point` of a source to the folder `to` (absolute, bytes).

    `paths` limits it to these paths of the tree (none: all). `grant` is an encoded Signed Grant
    that lets the target read. `overwrite` allows a folder that is not empty; `devices` allows
    device nodes to be made.
    """

    point: int
    to: bytes
    grant: bytes
    store: str
    paths: list[bytes] = []
    overwrite: bool = False
    devices: bool = False


Args = (
    ExpressFull
    | Sync
    | Check
    | Verify
    | Delete
    | Undelete
    | Reindex
    | Compact
    | Cancel
    | Assign
    | Restore
)

SCHEDULER_VERBS = frozenset({"express_full", "sync", "check", "verify"})
"""All that a scheduler's key may command: nothing that reads data out or takes protection away."""


class Command(Message, frozen=True, kw_only=True, tag="command"):
    """One thing to do.

    Times are Unix nanoseconds. `scheduled_at_ns` is the instant that the job stands for: a target
    refuses one older than the newest that it has taken of the same source and verb. After
    `not_after_ns` it must not be started any more.
    """

    site: str
    role: str
    instance: str
    source: str
    job: str
    scheduled_at_ns: int
    not_after_ns: int
    issued_by: str
    args: Args

    @property
    def verb(self) -> str:
        return verb_of(self.args)


class Grant(Message, frozen=True, kw_only=True, tag="grant"):
    """Leave to read one recovery point from a store, whole or by paths.

    Travels as `Signed(purpose="grant", body=encode(Grant))`. `grantee` is a caller token.
    """

    site: str
    store: str
    source: str
    point: int
    grantee: str
    job: str
    not_after_ns: int
    paths: list[bytes] = []


def verb_of(args: Args) -> str:
    """Return the verb of a command's arguments: their tag."""
    return str(type(args).__struct_config__.tag)


def accept_command(
    data: bytes | memoryview,
    subject: CommandSubject,
    site: str,
    trusted: Mapping[bytes, Authority],
) -> Command:
    """Return the command that `data` holds if it is signed, whole, and meant for `subject`.

    Raises BadMessage or BadSignature. Freshness (`not_after_ns`, known jobs) is the journal's.
    """
    signed = decode(data, Signed)
    authority = verify(signed, "command", trusted)
    command = decode(signed.body, Command)
    addressed = (command.site, command.role, command.instance, command.source, command.verb)
    if addressed != (site, subject.role, subject.instance, subject.source, subject.verb):
        raise BadSignature("a command that was signed for another target")
    if authority == "scheduler" and command.verb not in SCHEDULER_VERBS:
        raise BadSignature(f"a scheduler may not command {command.verb}")
    return command


def accept_grant(
    data: bytes | memoryview,
    *,
    site: str,
    store: str,
    caller: str,
    now_ns: int,
    trusted: Mapping[bytes, Authority],
) -> Grant:
    """Return the grant that `data` holds if it lets `caller` read from `store` now.

    Raises BadMessage or BadSignature.
    """
    signed = decode(data, Signed)
    verify(signed, "grant", trusted)
    grant = decode(signed.body, Grant)
    if (grant.site, grant.store, grant.grantee) != (site, store, caller):
        raise BadSignature("a grant that was given to somebody else")
    if now_ns > grant.not_after_ns:
        raise BadSignature("the grant has expired", hint="Start the restore again.")
    return grant
