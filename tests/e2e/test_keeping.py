"""What is kept and what goes, by the command line: deletes, undeletes, holds, retention."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from support.stack import Stack, copy, differences, until

DAY_S = 86400


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A stack whose store has the delay that it has by itself: a week."""
    stack = Stack("--server", "here")
    try:
        stack.up()
        yield stack
    finally:
        stack.close()


@pytest.fixture(scope="module")
def hasty() -> Iterator[Stack]:
    """A stack whose store lets go at once."""
    stack = Stack("--server", "here")
    stack.state.mkdir()
    settings = "[store]\ndelete_delay_days = 0\nhousekeeping_every_s = 1\nlease_s = 2\n"
    (stack.state / "strandline.toml").write_text(settings)
    try:
        stack.up()
        yield stack
    finally:
        stack.close()


def protect(stack: Stack, name: str, points: int) -> tuple[Path, dict[int, Path]]:
    """Protect a folder and make so many recovery points of it, each with a copy."""
    data = stack.work / name
    data.mkdir()
    kept = {}
    for number in range(1, points + 1):
        (data / "file").write_text(f"{name} {number}\n" * 1000)
        if number == 1:
            stack.json("protect", data, "--name", name, "--server", "here", "--wait")
        else:
            stack.json("express-full", name, "--wait")
        kept[number] = stack.work / f"{name}-{number}"
        copy(data, kept[number])
    return data, kept


def only_last(number: int) -> list[str]:
    """Return the options by which nothing but the newest so many is kept."""
    return ["--last", str(number), "--days", "0", "--daily", "0"]


def check_restores(stack: Stack, name: str, kept: dict[int, Path], *numbers: int) -> None:
    for number in numbers:
        target = stack.work / f"{name}-back-{number}-{time.monotonic_ns()}"
        stack.restore(name, number, target)
        assert differences(kept[number], target) == ""


def deleted(stack: Stack, name: str) -> list[int]:
    """Return the recovery points that are told to be deleted."""
    return [one["number"] for one in stack.points(name) if one["deleted_until"]]


def seconds_until(text: str) -> float:
    return datetime.fromisoformat(text[:19] + "+00:00").timestamp() - time.time()


def test_a_deleted_point_is_there_until_the_delay_is_over(stack: Stack) -> None:
    _, kept = protect(stack, "single", 3)
    done = stack.json("delete", "single", "--point", "1", "--point", "2", "--yes")
    assert done["state"] == "durable"
    assert (done["deleted"], done["replica_deleted"]) == ([1, 2], False)
    assert 6.9 * DAY_S < seconds_until(done["undelete_until"]) < 7.1 * DAY_S
    assert deleted(stack, "single") == [1, 2]
    assert "deleted, gone after" in stack.run("points", "single").stdout
    check_restores(stack, "single", kept, 1, 2, 3)
    stack.json("store", "compact", "single", "--wait")
    assert len(stack.points("single")) == 3, "the delay is not over"

    undone = stack.json("undelete", "single", "--point", "1")
    assert undone["deleted"] == [2]
    assert deleted(stack, "single") == [2]
    stack.json("undelete", "single")
    assert deleted(stack, "single") == []


def test_a_deleted_replica_comes_back_whole(stack: Stack) -> None:
    data, kept = protect(stack, "whole", 2)
    done = stack.json("unprotect", "whole", "--delete-replica", "--yes")
    assert done["unprotected"]["protected"] is False
    assert (done["replica_deleted"], done["verb"], done["state"]) == (True, "delete", "durable")
    told = "whole: deleted, gone after"
    until(lambda: told in stack.run("status").stdout, "the catalog knows it")
    (listed,) = [r for r in stack.json("store", "list")["replicas"] if r["name"] == "whole"]
    assert listed["replica_deleted"] is True
    check_restores(stack, "whole", kept, 1, 2)

    refused = stack.json("protect", data, "--name", "whole", "--server", "here", "--wait", code=1)
    assert refused["failure"]["code"] == "store.deleted"
    assert "undelete" in refused["failure"]["hint"]
    undone = stack.run("undelete", "whole")
    assert (undone.returncode, "deleted no more" in undone.stdout) == (0, True)
    stack.json("express-full", "whole", "--wait")
    assert [point["number"] for point in stack.points("whole")] == [1, 2, 3]
    check_restores(stack, "whole", kept, 1, 2)


def test_what_is_held_is_not_deleted(stack: Stack) -> None:
    protect(stack, "held", 2)
    stack.json("hold", "held", "--point", "1", "--reason", "audit")
    refused = stack.json("delete", "held", "--point", "1", "--yes", code=1)
    assert refused["failure"]["code"] == "store.held"
    assert deleted(stack, "held") == []
    stack.json("delete", "held", "--point", "2", "--yes")
    assert deleted(stack, "held") == [2]


def test_a_shorter_policy_counts_after_the_delay(stack: Stack) -> None:
    _, kept = protect(stack, "policy", 4)
    assert stack.json("retention", "default", *only_last(1))["shortened"] is True
    stack.json("store", "compact", "policy", "--wait")
    assert len(stack.points("policy")) == 4
    check_restores(stack, "policy", kept, 1)


def test_the_store_lists_its_replicas(stack: Stack) -> None:
    protect(stack, "listed", 2)
    found = stack.json("store", "list")
    assert found["silent"] == []
    (listed,) = [one for one in found["replicas"] if one["name"] == "listed"]
    assert (listed["store"], listed["points"], listed["newest"]) == ("store-1", 2, 2)
    assert listed["stored_bytes"] > 0
    assert (listed["damaged_chunks"], listed["inconsistent"]) == (0, None)
    row = next(line for line in stack.run("store", "list").stdout.splitlines() if "listed" in line)
    assert row.endswith("good")


def test_a_replica_is_indexed_anew(stack: Stack) -> None:
    _, kept = protect(stack, "indexed", 2)
    done = stack.json("store", "reindex", "indexed", "--wait")
    assert (done["verb"], done["state"]) == ("reindex", "durable")
    check_restores(stack, "indexed", kept, 1, 2)


def test_retention_drops_what_no_rule_keeps(hasty: Stack) -> None:
    _, kept = protect(hasty, "rules", 6)
    hasty.json("hold", "rules", "--point", "2", "--reason", "audit")
    hasty.json("retention", "default", *only_last(2))
    assert hasty.json("store", "compact", "rules", "--wait")["state"] == "durable"
    until(lambda: numbers(hasty, "rules") == [2, 5, 6], "what no rule keeps is gone", 60)
    check_restores(hasty, "rules", kept, 2, 5, 6)
    assert hasty.run("browse", "rules", "--at", "3").returncode == 3
    hasty.json("release", "rules")
    until(lambda: numbers(hasty, "rules") == [5, 6], "the held one goes by itself", 60)
    events = hasty.json("events", "rules")["events"]
    dropped = [one["data"] for one in events if (one["noun"], one["verb"]) == ("point", "dropped")]
    assert [one["points"] for one in dropped] == [[1, 3, 4], [2]]
    assert {one["reason"] for one in dropped} == {"retention"}


def numbers(stack: Stack, name: str) -> list[int]:
    return [int(point["number"]) for point in stack.points(name)]


def test_deleted_points_go_and_the_others_stay(hasty: Stack) -> None:
    hasty.json("retention", "default", "--last", "64")
    _, kept = protect(hasty, "numbers", 4)
    hasty.json("delete", "numbers", "--point", "1", "--point", "3", "--yes")
    until(lambda: numbers(hasty, "numbers") == [2, 4], "points 1 and 3 are gone", 60)
    check_restores(hasty, "numbers", kept, 2, 4)
    events: Any = hasty.run("events", "numbers").stdout
    assert "recovery points 1, 3 (deleted)" in events


def test_a_purged_replica_is_gone_and_the_name_begins_anew(hasty: Stack) -> None:
    data, _ = protect(hasty, "purged", 2)
    made = hasty.json("unprotect", "purged", "--delete-replica", "--yes")
    folder = hasty.state / "store-1" / "store" / "replicas" / made["unprotected"]["id"]
    until(lambda: not folder.exists(), "the replica is gone", 60)
    until(lambda: numbers(hasty, "purged") == [], "the catalog knows it", 60)
    assert hasty.json("undelete", "purged", code=1)["failure"]["code"] == "store.no_such"
    hasty.json("protect", data, "--name", "purged", "--server", "here", "--wait")
    hasty.restore("purged", numbers(hasty, "purged")[-1], hasty.work / "anew")
    assert differences(data, hasty.work / "anew") == ""
