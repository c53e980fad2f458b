"""What is protected, where and how often: the documents of the policy bucket, each signed.

Keys: `server.<server>` holds an Assignment, `group.<group>` a Group, `name.<hex of the label>` a
NameEntry. The bucket is the truth about policies (design §6).
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


class Group(Message, frozen=True, kw_only=True, tag="group"):
    """A protection group's policy, first form.

    `sync_every_s` is the sync interval in seconds, 0 for none, at least 60 otherwise.
    `express_full` holds cron expressions, read in `timezone` (an IANA name).
    """

    name: str
    sync_every_s: int = 0
    express_full: list[str] = []
    timezone: str = "UTC"


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


def name_key(name: str) -> str:
    return f"name.{name.encode('utf-8', 'surrogateescape').hex()}"


Document = Assignment | Group | NameEntry


def key_of(document: Document) -> str:
    """Return the key of the policy bucket under which `document` belongs."""
    if isinstance(document, Assignment):
        return server_key(document.server)
    if isinstance(document, Group):
        return group_key(document.name)
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
