"""Every subject of the bus, built and taken apart in one place (docs/formats/messages.md)."""

from __future__ import annotations

from typing import NamedTuple

from strandline_contracts.errors import BadMessage
from strandline_contracts.names import Role, token

POLICY_BUCKET = "POLICY"
COMMANDS = "COMMANDS"
EVENTS = "EVENTS"
POLICY_STREAM = f"KV_{POLICY_BUCKET}"
NO_SOURCE = "-"
"""Stands in a subject's source token where the message concerns no single data source."""


class Subjects:
    """Builds the subjects of one site."""

    def __init__(self, site: str) -> None:
        self.site = token(site)
        self.root = f"strandline.v1.{site}"

    def command(self, role: Role, instance: str, source: str, verb: str) -> str:
        return f"{self.root}.cmd.{role}.{token(instance)}.{token(source)}.{token(verb)}"

    def commands_to(self, role: Role, instance: str) -> str:
        return f"{self.root}.cmd.{role}.{token(instance)}.>"

    def blocks(self, store: str, server: str, source: str) -> str:
        return f"{self.root}.blk.{token(store)}.{token(server)}.{token(source)}"

    def event(self, origin: str, noun: str, verb: str, source: str) -> str:
        return f"{self.root}.evt.{token(origin)}.{token(noun)}.{token(verb)}.{token(source)}"

    def call(self, role: Role, instance: str, call: str, caller: str) -> str:
        return f"{self.root}.svc.{role}.{token(instance)}.{token(call)}.{token(caller)}"

    def progress(self, job: str) -> str:
        return f"{self.root}.prg.{token(job)}"


class CommandSubject(NamedTuple):
    role: str
    instance: str
    source: str
    verb: str


class BlocksSubject(NamedTuple):
    store: str
    server: str
    source: str


class EventSubject(NamedTuple):
    origin: str
    noun: str
    verb: str
    source: str


class CallSubject(NamedTuple):
    role: str
    instance: str
    call: str
    caller: str


def _tokens(subject: str, kind: str, count: int) -> list[str]:
    parts = subject.split(".")
    if len(parts) != 4 + count or parts[:2] != ["strandline", "v1"] or parts[3] != kind:
        raise BadMessage(f"not a {kind} subject: {subject!r}")
    return parts[4:]


def parse_command(subject: str) -> CommandSubject:
    return CommandSubject(*_tokens(subject, "cmd", 4))


def parse_blocks(subject: str) -> BlocksSubject:
    return BlocksSubject(*_tokens(subject, "blk", 3))


def parse_event(subject: str) -> EventSubject:
    return EventSubject(*_tokens(subject, "evt", 4))


def parse_call(subject: str) -> CallSubject:
    return CallSubject(*_tokens(subject, "svc", 4))


def inbox_prefix(caller: str) -> str:
    """Return the prefix below which a credential, and nobody else, may subscribe to replies."""
    return f"_INBOX.{token(caller)}"


def is_reply_to(caller: str, reply: str) -> bool:
    """Tell whether `reply` lies inside the inbox of `caller`: no other place gets an answer."""
    return reply.startswith(inbox_prefix(caller) + ".") and not any(c in reply for c in "*> \t\r\n")


def blocks_stream(store: str) -> str:
    return f"BLOCKS_{token(store)}"


def policy_subject(key: str) -> str:
    """Return the subject under which the policy bucket holds `key`."""
    return f"$KV.{POLICY_BUCKET}.{key}"
