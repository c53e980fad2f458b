"""What is kept, by the command line against a real stack: retention, holds, asking, the clock."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import pytest

from strandline_console.site import PolicyBusy, open_site
from strandline_contracts.policy import Group, Hold, Retention, group_key, hold_key


async def policy(stack: Any, key: str, kind: type[Any]) -> Any:
    async with open_site(str(stack.root)) as site:
        return (await site.policy(key, kind))[0]


@pytest.fixture(scope="module")
def source(up: Any) -> str:
    """A data source with three recovery points; returns its id."""
    data = up.root.parent / "kept"
    data.mkdir()
    (data / "file").write_text("kept")
    made = up.document("protect", str(data), "--name", "kept", "--server", "srv1", "--wait")
    for _ in range(2):
        up.run("express-full", "kept", "--wait")
    return str(made["protected"]["id"])


async def test_retention_is_shown_and_set(up: Any, source: str) -> None:
    shown = await asyncio.to_thread(up.document, "retention", "default")
    assert shown["default"] is True
    assert (shown["retention"]["days"], shown["retention"]["daily"]) == (7, 64)
    listed = await asyncio.to_thread(up.run, "retention")
    name, keeps = listed.splitlines()[1].split(maxsplit=1)
    assert (name, keeps.split(";")[0]) == ("default", "all of the last 7 days")
    fewer = ["--last", "3", "--days", "0", "--daily", "7", "--log-window", "2d"]
    done = await asyncio.to_thread(up.document, "retention", "default", *fewer)
    assert done["shortened"] is True
    group = await policy(up, group_key("default"), Group)
    assert group.retention == Retention(last=3, daily=7, log_window_s=172_800)
    assert group.express_full == ["0 20 * * *"], "the rest of the group stays"
    told = await asyncio.to_thread(up.run, "retention", "default", "--log-window", "0")
    assert "the newest 3 recovery points" in told
    assert "not before" not in told
    assert "own delay" in told
    more = await asyncio.to_thread(up.document, "retention", "default", "--last", "64")
    assert more["shortened"] is False


def test_an_unknown_group_is_3_with_the_nearest(up: Any, source: str) -> None:
    error = up.document("retention", "defualt", code=3)["error"]
    assert error["nearest"] == ["default"]
    assert up.ran("retention", "defualt", "--last", "3").returncode == 3


async def test_a_lost_race_on_a_group_is_tried_again(
    up: Any, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_site(str(up.root)) as site:
        original = site.put_policy

        async def late(key: str, document: Any, revision: int) -> None:
            await original(key, Group(name="race", sync_every_s=900), revision)
            monkeypatch.undo()
            await original(key, document, revision)

        key = group_key("race")
        assert await site.try_policy(key, Group(name="race"), 0)
        monkeypatch.setattr(site, "put_policy", late)

        def change(found: Group | None) -> Group:
            every_s = found.sync_every_s if found else 0
            return Group(name="race", sync_every_s=every_s, retention=Retention(last=9))

        done = await site.change_policy(key, Group, change)
        assert (done.sync_every_s, done.retention.last) == (900, 9)

        async def always(key: str, document: Any, revision: int) -> None:
            await original(key, Group(name="race", sync_every_s=revision), revision)
            await original(key, document, revision)

        monkeypatch.setattr(site, "put_policy", always)
        with pytest.raises(PolicyBusy):
            await site.change_policy(key, Group, lambda found: Group(name="race", timezone="x"))


async def test_holds_are_signed_documents_that_add_up(up: Any, source: str) -> None:
    def told(*args: str) -> Any:
        return up.document(*args)

    one = await asyncio.to_thread(told, "hold", "kept", "--point", "2", "--reason", "audit")
    assert (one["held"], one["all"], one["reason"]) == ([2], False, "audit")
    two = await asyncio.to_thread(told, "hold", "kept", "--point", "1", "--reason", "more")
    assert two["held"] == [1, 2]
    hold = await policy(up, hold_key(source), Hold)
    assert (hold.points, hold.reason, hold.by) == ([1, 2], "more", "operator-local")
    points = (await asyncio.to_thread(told, "points", "kept"))["points"]
    assert {point["number"]: point["held"] for point in points} == {3: False, 2: True, 1: True}
    assert "held" in await asyncio.to_thread(up.run, "points", "kept")

    left = await asyncio.to_thread(told, "release", "kept", "--point", "2")
    assert left["held"] == [1]
    whole = await asyncio.to_thread(told, "hold", "kept", "--reason", "all")
    assert whole["all"] is True
    assert "kept: all held" in await asyncio.to_thread(up.run, "status")
    assert (await asyncio.to_thread(told, "release", "kept"))["held"] == []
    assert (await policy(up, hold_key(source), Hold)).points == []


def test_what_is_not_there_or_not_held(up: Any, source: str) -> None:
    missing = up.document("hold", "kept", "--point", "99", "--reason", "x", code=3)["error"]
    assert "no recovery point 99" in missing["message"]
    assert "not held" in up.document("release", "kept", "--point", "3", code=2)["error"]["message"]
    up.run("hold", "kept", "--reason", "x")
    single = up.document("release", "kept", "--point", "3", code=2)["error"]
    assert single["hint"].startswith("strandline release kept")
    up.run("release", "kept")
    assert up.document("delete", "kept", "--point", "99", "--yes", code=3)["error"]


def test_a_held_source_is_not_unprotected_to_be_deleted(up: Any, source: str) -> None:
    up.run("hold", "kept", "--point", "1", "--reason", "audit")
    error = up.document("unprotect", "kept", "--delete-replica", "--yes", code=1)["error"]
    assert error["code"] == "store.held"
    assert "audit" in error["message"]
    (listed,) = [one for one in up.document("status")["sources"] if one["name"] == "kept"]
    assert listed["protected"] is True
    assert listed["held"] == [1]
    up.run("release", "kept")


def test_a_person_must_type_the_name(up: Any, source: str) -> None:
    terminal, other_end = pty.openpty()
    try:
        with subprocess.Popen(
            up.command("unprotect", "kept", "--delete-replica"),
            stdin=other_end,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            os.write(terminal, b"something else\n")
            _, told = process.communicate(timeout=30)
    finally:
        os.close(terminal)
        os.close(other_end)
    assert process.returncode == 2
    assert "deletes all recovery points of kept" in told
    assert "nothing was deleted" in told
    (listed,) = [one for one in up.document("status")["sources"] if one["name"] == "kept"]
    assert listed["protected"] is True


def test_the_clock_of_the_store_is_told(up: Any) -> None:
    found = up.document("store", "clock")
    assert (found["store"], found["trusted"], found["doubt"]) == ("store-1", True, None)
    assert up.document("store", "clock", "--accept")["accepted"] is True


def test_a_doubted_clock_is_1_and_says_what_to_do(up: Any) -> None:
    mark = Path(up.root) / "store-1" / "store" / "clock.json"
    before = mark.read_bytes() if mark.exists() else None
    far = {"format": 1, "wall_ns": 2**62, "boottime_ns": 0, "boot_id": "x", "highest_ns": 2**62}
    mark.write_text(json.dumps(far))
    try:
        told = up.ran("store", "clock")
    finally:
        if before is None:
            mark.unlink()
        else:
            mark.write_bytes(before)
    assert told.returncode == 1
    assert "does not believe its clock" in told.stdout
    assert "strandline store clock --accept" in told.stdout


def test_a_store_that_is_not_here(up: Any) -> None:
    error = up.document("store", "clock", "--store", "store-9", code=3)["error"]
    assert error["code"] == "console.no_such_thing"
    assert error["nearest"] == ["store-1"]
