"""Subjects and names: what was built comes apart again, and nothing slips in between the dots."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strandline_contracts import subjects as s
from strandline_contracts.errors import BadMessage, BadName
from strandline_contracts.names import (
    Role,
    caller,
    label,
    new_job_id,
    new_source_id,
    scheduled_job_id,
    server_from_hostname,
    token,
)
from strandline_contracts.policy import group_key, name_key

TOKEN = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
ROLE = st.sampled_from(["store", "agent", "catalog"])
HQ = s.Subjects("hq")


@given(ROLE, TOKEN, TOKEN, TOKEN)
def test_commands_come_apart(role: Role, instance: str, source: str, verb: str) -> None:
    subject = HQ.command(role, instance, source, verb)
    assert s.parse_command(subject) == (role, instance, source, verb)
    assert subject.startswith(HQ.commands_to(role, instance).removesuffix(">"))


@given(TOKEN, TOKEN, TOKEN, TOKEN)
def test_events_blocks_and_calls_come_apart(a: str, b: str, c: str, d: str) -> None:
    assert s.parse_event(HQ.event(a, b, c, d)) == (a, b, c, d)
    assert s.parse_blocks(HQ.blocks(a, b, c)) == (a, b, c)
    assert s.parse_call(HQ.call("store", b, c, d)) == ("store", b, c, d)


@given(st.text(max_size=70))
def test_what_is_no_token_gets_into_no_subject(text: str) -> None:
    """An oracle by letters: the same answer as the pattern gives."""
    letters = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
    if 1 <= len(text) <= 64 and set(text) <= letters:
        assert token(text) == text
        return
    for build in (
        lambda: HQ.blocks(text, "a", "b"),
        lambda: HQ.event("a", text, "b", "c"),
        lambda: HQ.call("store", "a", "b", text),
        lambda: HQ.command("agent", text, "a", "b"),
        lambda: HQ.progress(text),
        lambda: s.Subjects(text),
        lambda: s.inbox_prefix(text),
        lambda: caller("agent", text),
    ):
        with pytest.raises(BadName):
            build()


@pytest.mark.parametrize(
    "bad", ["a.b", "*", ">", "", "a b", "a\n", "a\x00", "ä", "x" * 65, "a\r\n"]
)
def test_bad_tokens(bad: str) -> None:
    with pytest.raises(BadName):
        token(bad)


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "strandline.v1.hq.cmd.agent.a.s",
        "strandline.v1.hq.cmd.agent.a.s.v.w",
        "strandline.v2.hq.cmd.agent.a.s.v",
        "strandline.v1.hq.evt.agent.a.s.v",
        "other.v1.hq.cmd.agent.a.s.v",
    ],
)
def test_other_subjects_are_no_commands(subject: str) -> None:
    with pytest.raises(BadMessage):
        s.parse_command(subject)


@pytest.mark.parametrize(
    ("reply", "own"),
    [
        ("_INBOX.agent-web-1.abc", True),
        ("_INBOX.agent-web-1.abc.d", True),
        ("_INBOX.agent-web-1", False),
        ("_INBOX.agent-web-1x.abc", False),
        ("_INBOX.agent-web-10.abc", False),
        ("_INBOX.agent-db-1.abc", False),
        ("_INBOX.agent-web-1.>", False),
        ("_INBOX.agent-web-1.*", False),
        ("_INBOX.agent-web-1.a b", False),
        ("_inbox.agent-web-1.a", False),
        ("strandline.v1.hq.evt.a.b.c.d", False),
        ("", False),
    ],
)
def test_whose_reply_subject(reply: str, own: bool) -> None:
    assert s.is_reply_to("agent-web-1", reply) is own


@given(TOKEN, TOKEN)
def test_no_two_callers_share_an_inbox(one: str, other: str) -> None:
    replies_to_one = f"{s.inbox_prefix(one)}.x"
    assert s.is_reply_to(other, replies_to_one) is (one == other)


@given(st.text(max_size=140))
def test_labels(text: str) -> None:
    size_bytes = len(text.encode("utf-8", "surrogateescape")) if _encodable(text) else 0
    good = 1 <= size_bytes <= 128 and text.isprintable() and "/" not in text
    if good:
        assert label(text) == text
    elif _encodable(text):
        with pytest.raises(BadName):
            label(text)


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


@given(st.text(max_size=100))
def test_any_hostname_becomes_a_server(hostname: str) -> None:
    assert token(server_from_hostname(hostname))


@given(st.text(max_size=100), st.text(max_size=100))
def test_policy_keys_are_tokens_and_differ(one: str, other: str) -> None:
    for key in (name_key, group_key):
        try:
            first, second = key(one), key(other)
        except UnicodeEncodeError:
            continue
        assert set(first) <= set("abcdefghijklmnopqrstuvwxyz.0123456789")
        assert (first == second) is (one == other)


def test_ids() -> None:
    assert token(new_source_id()) != new_source_id()
    assert token(new_job_id()) != new_job_id()
    one = scheduled_job_id("s1", "sync", 5)
    assert one == scheduled_job_id("s1", "sync", 5)
    others = {
        scheduled_job_id(*args)
        for args in (("s1", "sync", 6), ("s2", "sync", 5), ("s1", "check", 5), ("s1s", "ync", 5))
    }
    assert one not in others
    assert len(others) == 4
