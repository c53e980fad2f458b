"""Signatures, commands and grants: who may ask for what, and nothing else counts."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strandline_contracts.codec import encode
from strandline_contracts.commands import (
    SCHEDULER_VERBS,
    Args,
    Assign,
    Cancel,
    Check,
    ExpressFull,
    Grant,
    Restore,
    Sync,
    Verify,
    accept_command,
    accept_grant,
)
from strandline_contracts.errors import BadMessage, BadSignature
from strandline_contracts.signing import Authority, Signed, public_key, sign, verify
from strandline_contracts.subjects import CommandSubject
from support.commands import make_command, signed

OPERATOR, SCHEDULER, STRANGER = b"\x01" * 32, b"\x02" * 32, b"\x03" * 32
TRUSTED: dict[bytes, Authority] = {
    public_key(OPERATOR): "operator",
    public_key(SCHEDULER): "scheduler",
}
RESTORE = Restore(point=1, to=b"/x", grant=b"", store="store-1")
ALL_ARGS: list[Args] = [
    ExpressFull(),
    Sync(),
    Check(),
    Verify(),
    Cancel(target="j"),
    Assign(),
    RESTORE,
]
HERE = CommandSubject("agent", "web-1", "s1", "express_full")


def test_a_true_command_is_accepted() -> None:
    command = make_command("j1")
    for seed in (OPERATOR, SCHEDULER):
        assert accept_command(signed(seed, command), HERE, "hq", TRUSTED) == command


@pytest.mark.parametrize("args", ALL_ARGS, ids=lambda args: type(args).__name__)
def test_a_scheduler_commands_only_what_harms_nobody(args: Args) -> None:
    command = make_command("j1", args=args)
    subject = HERE._replace(verb=command.verb)
    assert accept_command(signed(OPERATOR, command), subject, "hq", TRUSTED) == command
    if command.verb in SCHEDULER_VERBS:
        assert accept_command(signed(SCHEDULER, command), subject, "hq", TRUSTED) == command
    else:
        with pytest.raises(BadSignature):
            accept_command(signed(SCHEDULER, command), subject, "hq", TRUSTED)


@pytest.mark.parametrize(
    "elsewhere",
    [
        HERE._replace(role="store"),
        HERE._replace(instance="web-2"),
        HERE._replace(source="s2"),
        HERE._replace(verb="sync"),
    ],
)
def test_a_command_counts_nowhere_else(elsewhere: CommandSubject) -> None:
    data = signed(OPERATOR, make_command("j1"))
    with pytest.raises(BadSignature):
        accept_command(data, elsewhere, "hq", TRUSTED)
    with pytest.raises(BadSignature):
        accept_command(data, HERE, "dr", TRUSTED)


def test_strangers_and_other_purposes_do_not_count() -> None:
    command = make_command("j1")
    with pytest.raises(BadSignature, match="unknown key"):
        accept_command(signed(STRANGER, command), HERE, "hq", TRUSTED)
    for purpose in ("grant", "policy"):
        with pytest.raises(BadSignature):
            accept_command(encode(sign(OPERATOR, purpose, encode(command))), HERE, "hq", TRUSTED)
        with pytest.raises(BadSignature):
            verify(sign(SCHEDULER, purpose, b"x"), purpose, TRUSTED)
    relabelled = msgspec.structs.replace(
        sign(OPERATOR, "grant", encode(command)), purpose="command"
    )
    with pytest.raises(BadSignature):
        accept_command(encode(relabelled), HERE, "hq", TRUSTED)


@settings(max_examples=60)
@given(st.data())
def test_no_changed_bit_is_accepted(data: st.DataObject) -> None:
    """Any single changed byte of body, key or signature undoes the signature."""
    message = sign(OPERATOR, "command", encode(make_command("j1", at_ns=1)))
    field = data.draw(st.sampled_from(["body", "key", "signature"]))
    changed = bytearray(getattr(message, field))
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    forged = msgspec.structs.replace(message, **{field: bytes(changed)})
    with pytest.raises(BadSignature):
        verify(forged, "command", TRUSTED)


@pytest.mark.parametrize("length", [0, 1, 31, 63, 65, 128])
def test_keys_and_signatures_of_other_lengths_are_refused(length: int) -> None:
    message = sign(OPERATOR, "command", b"x")
    with pytest.raises(BadSignature):
        verify(msgspec.structs.replace(message, signature=b"s" * length), "command", TRUSTED)
    odd: dict[bytes, Authority] = {b"k" * length: "operator"}
    with pytest.raises(BadSignature):
        verify(msgspec.structs.replace(message, key=b"k" * length), "command", odd)


def test_what_is_not_signed_at_all_is_a_bad_message() -> None:
    for data in (b"", b"rubbish", encode(make_command("j1"))):
        with pytest.raises(BadMessage):
            accept_command(data, HERE, "hq", TRUSTED)


def test_a_signed_body_that_is_no_command_is_a_bad_message() -> None:
    with pytest.raises(BadMessage):
        accept_command(encode(sign(OPERATOR, "command", b"x")), HERE, "hq", TRUSTED)


GRANT = Grant(
    site="hq",
    store="store-1",
    source="s1",
    point=1,
    grantee="agent-web-1",
    job="j1",
    not_after_ns=1000,
)


def grant(seed: bytes = OPERATOR, **where: Any) -> Grant:
    expected: dict[str, Any] = {
        "site": "hq",
        "store": "store-1",
        "caller": "agent-web-1",
        "now_ns": 1000,
    }
    message: Signed = sign(seed, "grant", encode(GRANT))
    return accept_grant(encode(message), trusted=TRUSTED, **(expected | where))


def test_a_grant_is_for_one_reader_of_one_store_for_a_time() -> None:
    assert grant() == GRANT
    for wrong in (
        {"site": "dr"},
        {"store": "store-2"},
        {"caller": "agent-db-1"},
        {"now_ns": 1001},
        {"seed": SCHEDULER},
        {"seed": STRANGER},
    ):
        with pytest.raises(BadSignature):
            grant(**wrong)
