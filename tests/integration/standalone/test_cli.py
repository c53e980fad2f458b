"""The command line against a real stack: names, policies, exit codes, documents."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from strandline_console.protecting import change_assignment
from strandline_console.site import Site, open_site
from strandline_contracts.policy import Assignment, Group, Source, group_key, server_key


def folder(stack: Any, name: str) -> Path:
    path: Path = stack.root.parent / name
    path.mkdir()
    (path / "file").write_text(name)
    return path


async def policy(stack: Any, key: str, kind: type[Any]) -> Any:
    async with open_site(str(stack.root)) as site:
        return (await site.policy(key, kind))[0]


async def test_protect_writes_the_policy_and_commands_the_first_replica(up: Any) -> None:
    data = folder(up, "data")
    made = await asyncio.to_thread(
        up.document,
        "protect",
        str(data),
        "--name",
        "data",
        "--server",
        "srv1",
        "--exclude",
        "*.tmp",
    )
    assert made["verb"] == "express_full"
    assert made["protected"]["paths"][0]["text"] == str(data)
    assignment = await policy(up, server_key("srv1"), Assignment)
    source = next(one for one in assignment.sources if one.name == "data")
    assert (source.id, source.name, source.excludes) == (made["protected"]["id"], "data", ["*.tmp"])
    group = await policy(up, group_key("default"), Group)
    assert group.express_full == ["0 20 * * *"]
    assert group.sync_every_s == 0
    events = up.document("events", "data")["events"]
    protected = [one for one in events if one["noun"] == "source"]
    assert [(one["verb"], one["number"]) for one in protected] == [("protected", 1)]


def test_a_name_belongs_to_one_source_and_comes_back_to_it(up: Any) -> None:
    one, two = folder(up, "one"), folder(up, "two")
    first = up.document("protect", str(one), "--name", "x", "--server", "srv1")
    taken = up.document("protect", str(two), "--name", "x", "--server", "srv1", code=1)
    assert taken["error"]["code"] == "console.name_taken"
    elsewhere = up.document("protect", str(two), "--name", "x", "--server", "srv2", code=1)
    assert elsewhere["error"]["code"] == "console.name_taken"

    assert up.document("unprotect", "x")["unprotected"]["protected"] is False
    refused = up.ran("express-full", "x")
    assert refused.returncode == 2
    assert "no longer protected" in refused.stderr
    again = up.document("protect", str(two), "--name", "x", "--server", "srv1")
    assert again["protected"]["id"] == first["protected"]["id"]
    assert again["protected"]["paths"][0]["text"] == str(two)
    numbers = [
        one["number"] for one in up.document("events", "x")["events"] if one["noun"] == "source"
    ]
    assert numbers == [1, 2, 3]


def test_unknown_names_are_3_with_the_nearest(up: Any) -> None:
    up.run("protect", str(folder(up, "db")), "--name", "database", "--server", "srv1")
    for args in (["points", "databse"], ["sync", "databse"], ["unprotect", "databse"]):
        error = up.document(*args, code=3)["error"]
        assert error["nearest"][0] == "database", args
    error = up.document("restore", "database", "--to", "/x", "--server", "srv", code=3)["error"]
    assert set(error["nearest"]) == {"srv1", "srv2"}
    assert "no recovery point 4711" in up.ran("browse", "database", "--at", "4711").stderr
    assert up.ran("browse", "database", "--at", "4711").returncode == 3


def test_wrong_paths_are_2(up: Any) -> None:
    before = up.document("status")["sources"]
    missing = up.ran("protect", "/no/such/folder", "--name", "x", "--server", "srv1")
    assert missing.returncode == 2
    assert "No such file" in missing.stderr
    own = up.ran("protect", str(up.root / "store-1"), "--name", "x", "--server", "srv1")
    assert own.returncode == 2
    assert "own state folder" in own.stderr
    fifo = up.root.parent / "fifo"
    os.mkfifo(fifo)
    assert up.ran("protect", str(fifo), "--name", "x", "--server", "srv1").returncode == 2
    several = up.ran("protect", "/etc", "--name", "x")
    assert several.returncode == 2
    assert "--server: srv1, srv2" in several.stderr
    assert len(up.document("status")["sources"]) == len(before), "nothing was made"


def test_the_own_state_folder_is_left_out(up: Any) -> None:
    told = up.ran("protect", str(up.root.parent), "--name", "all", "--server", "srv1")
    assert f"left out: {up.root}" in told.stderr
    config = tomllib.loads((up.root / "config" / "agent-srv1.toml").read_text())
    assert config["own_state"] == [str(up.root)]


async def test_commands_at_the_same_time_lose_nothing(up: Any) -> None:
    before = await policy(up, server_key("srv1"), Assignment)
    names = [f"source-{number}" for number in range(4)]
    folders = [str(folder(up, name)) for name in names]
    processes = [
        await asyncio.create_subprocess_exec(
            *up.command("protect", path, "--name", name, "--server", "srv1"),
            stdout=subprocess.DEVNULL,
        )
        for name, path in zip(names, folders, strict=True)
    ]
    assert [await process.wait() for process in processes] == [0, 0, 0, 0]
    assignment = await policy(up, server_key("srv1"), Assignment)
    assert set(names) <= {source.name for source in assignment.sources}
    assert assignment.revision == (before.revision if before is not None else 0) + 4


async def test_a_lost_race_is_tried_again_on_what_the_other_wrote(
    up: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def source(name: str) -> Source:
        return Source(id=name * 16, name=name, type="files", server="srv2", store="store-1")

    async with open_site(str(up.root)) as site:
        calls = []

        async def other(site: Site) -> None:
            await change_assignment(site, "srv2", lambda sources: [*sources, source("b")])

        def change(sources: list[Source]) -> list[Source]:
            calls.append(len(sources))
            return [*sources, source("a")]

        original = site.put_policy

        async def late(*args: Any) -> None:
            monkeypatch.undo()
            await other(site)
            await original(*args)

        monkeypatch.setattr(site, "put_policy", late)
        await change_assignment(site, "srv2", change)
        assert calls[1] == calls[0] + 1
        assignment, _ = await site.policy(server_key("srv2"), Assignment)
        assert assignment is not None
        assert [one.name for one in assignment.sources][-2:] == ["b", "a"]


def test_waiting_ends_with_the_truth(up: Any) -> None:
    one, two = folder(up, "kept"), folder(up, "gone")
    odd = os.fsencode(one) + b"/odd\xe9\nname"
    Path(os.fsdecode(odd)).write_bytes(b"odd")
    paths = (str(one), str(two))
    done = up.document("protect", *paths, "--name", "pair", "--server", "srv1", "--wait")
    assert (done["state"], done["point"], done["partial"]) == ("durable", 1, False)
    shutil.rmtree(two)
    part = up.document("express-full", "pair", "--wait", code=4)
    assert (part["state"], part["point"], part["partial"]) == ("durable", 2, True)
    assert [issue["path"]["text"] for issue in part["issues"]] == [str(two)]
    assert str(two) in up.ran("sync", "pair", "--wait").stderr

    entries = up.document("browse", "pair", str(one))["entries"]
    names = {entry["name"]["text"]: base64.b64decode(entry["name"]["base64"]) for entry in entries}
    assert names == {r"odd\xe9\x0aname": b"odd\xe9\nname", "file": b"file"}
    assert [point["number"] for point in up.document("points", "pair")["points"]] == [3, 2, 1]

    back = up.root.parent / "back"
    # The folders above the protected ones are root's: only root can give them back as they were.
    whole = 0 if os.geteuid() == 0 else 4
    up.run("restore", "pair", "--at", "1", "--to", str(back), "--wait", code=whole)
    restored = back / str(two).lstrip("/") / "file"
    assert restored.read_text() == "gone"
    full = up.document("restore", "pair", "--to", str(back), "--wait", code=1)
    assert full["failure"]["code"] == "restore.not_empty"
    some = up.root.parent / "some"
    path = os.fsdecode(odd)
    up.run("restore", "pair", "--path", path, "--to", str(some), "--server", "srv2", "--wait")
    assert [file.read_bytes() for file in some.rglob("odd*")] == [b"odd"]
    jobs = up.document("jobs", "pair")["jobs"]
    assert [job["verb"] for job in jobs[:2]] == ["restore", "restore"]
    up.run("verify", "pair", "--wait")


def test_waiting_for_a_silent_agent_says_so(stack: Any) -> None:
    stack.run("up", "--detach", "--server", "gone")
    stack.run("protect", str(folder(stack, "data")), "--name", "data")
    stack.run("down")
    stack.run("up", "--detach", "--server", "here")
    with subprocess.Popen(
        stack.command("express-full", "data", "--wait"), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("the agent gone has not answered for")
        assert "the job stays queued until" in line
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130


def test_following_shows_what_comes(up: Any, wait_until: Callable[..., None]) -> None:
    with subprocess.Popen(
        up.command("events", "--follow", "--json"), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        up.run("protect", str(folder(up, "new")), "--name", "new", "--server", "srv1")
        for line in process.stdout:
            event = json.loads(line)
            if event["noun"] == "source" and event["data"]["source"]["name"] == "new":
                break
        assert event["verb"] == "protected"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
