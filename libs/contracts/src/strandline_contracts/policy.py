"""What is protected, where and how often: the documents of the policy bucket, each signed.

Keys: `server.<server>` holds an Assignment, `group.<hex of the name>` a Group, `name.<hex of the
label>` a NameEntry, `hold.<source>` a Hold. The bucket is the truth about policies (design §6).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from strandline_contracts.codec import Message, decode
from strandline_contracts.errors import BadMessage
from strandline_contracts.signing import Authority, Signed, verify
from strandline_contracts.subjects import policy_subject

MAX_SOURCES_PER_SERVER = 256
"""An Assignment is one message; so many sources, with long path lists, still fit."""


class Source(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A data source: a thing that is protected as a whole.

    `paths` are absolute, as bytes. `excludes` are gitignore lines, relative to each path; a line
    that begins with `!` makes an exception to those before it. `protected` is false after
    `unprotect`: no new recovery points, the replica stays.
    """

    id: str
    name: str
    type: Literal["files"]
    server: str
    store: str
    group: str = "default"
    paths: list[bytes] = []
    excludes: list[str] = []
    protected: bool = True


class Assignment(Message, frozen=True, kw_only=True, tag="assignment"):
    """The data sources of one server; `revision` grows with each change."""

    server: str
    revision: int
    sources: list[Source] = []


class Retention(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which recovery points are kept: those that any of the rules keeps, by the store's clock.

    `last` keeps the newest so many, `days` all that are younger. `hourly` to `yearly` keep the
    newest recovery point of each of the last so many hours, days, weeks (from Monday), months and
    years that have one, read in the group's time zone. `log_window_s` promises every logged moment
    of the last so many seconds: the newest full at or before its start is kept. All zero: the
    default of the data source's type (DEFAULT_RETENTION).
    """

    last: int = 0
    days: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    log_window_s: int = 0


DEFAULT_RETENTION: dict[str, Retention] = {"files": Retention(days=7, daily=64)}
"""By type of data source. DPM keeps the newest 64 of files and 512 of applications; here these are
days: rules over time cannot be hastened by an agent that makes many recovery points."""
DEFAULT_RETENTION_OF_APPLICATIONS = Retention(days=7, daily=512)


class Group(Message, frozen=True, kw_only=True, tag="group"):
    """A protection group's policy, first form.

    `sync_every_s` is the sync interval in seconds, 0 for none, at least 60 otherwise.
    `express_full` holds cron expressions, read in `timezone` (an IANA name).
    """

    name: str
    sync_every_s: int = 0
    express_full: list[str] = []
    timezone: str = "UTC"
    retention: Retention = Retention()


class Hold(Message, frozen=True, kw_only=True, tag="hold"):
    """Recovery points of a source that no rule drops until the hold is released.

    `points` are numbers; 0 stands for all of them, also those that come. Empty: released.
    """

    source: str
    points: list[int] = []
    reason: str = ""
    held_at_ns: int = 0
    by: str = ""


class NameEntry(Message, frozen=True, kw_only=True, tag="name"):
    """Binds a label to a data source, so that no two sources of a site share one."""

    name: str
    source: str
    server: str
    store: str


def server_key(server: str) -> str:
    return f"server.{server}"


def group_key(group: str) -> str:
    return f"group.{group.encode().hex()}"


def hold_key(source: str) -> str:
    return f"hold.{source}"


def name_key(name: str) -> str:
    return f"name.{name.encode('utf-8', 'surrogateescape').hex()}"


Document = Assignment | Group | NameEntry | Hold


def key_of(document: Document) -> str:
    """Return the key of the policy bucket under which `document` belongs."""
    if isinstance(document, Assignment):
        return server_key(document.server)
    if isinstance(document, Group):
        return group_key(document.name)
    if isinstance(document, Hold):
        return hold_key(document.source)
    return name_key(document.name)


def accept_policy(
    data: bytes | memoryview, subject: str, trusted: Mapping[bytes, Authority]
) -> Document:
    """Return the document that `data` holds if it is signed and belongs on `subject`.

    Raises BadMessage or BadSignature.
    """
    signed = decode(data, Signed)
    verify(signed, "policy", trusted)
    document: Document = decode(signed.body, Document)  # type: ignore[arg-type]
    if policy_subject(key_of(document)) != subject:
        raise BadMessage(f"a document of {key_of(document)} lies under {subject}")
    return document
