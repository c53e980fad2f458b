"""A replica's folder, copied to another machine's stack, restores there without the old site."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from support.stack import Stack, copy, differences, until


class Brought(NamedTuple):
    """What is left of the old site: a replica's folder, and the trees that it must give back."""

    replica: Path
    references: dict[int, Path]


@pytest.fixture(scope="module")
def brought() -> Iterator[Brought]:
    kept = Path(tempfile.mkdtemp(prefix="strandline-brought-", dir="/var/tmp"))
    old = Stack("--server", "old-srv")
    try:
        old.up()
        data = old.work / "data"
        (data / "folder").mkdir(parents=True)
        (data / "large").write_bytes(os.urandom(3 << 20))
        (data / "folder" / "small").write_text("small\n")
        os.link(data / "large", data / "folder" / "linked")
        made = old.json("protect", data, "--name", "shop", "--server", "old-srv", "--wait")
        references = {1: kept / "reference-1", 2: kept / "reference-2"}
        copy(data, references[1])
        with (data / "large").open("r+b") as file:
            file.seek(1 << 20)
            file.write(os.urandom(4096))
        (data / "folder").rename(data / "renamed")
        old.json("express-full", "shop", "--wait")
        copy(data, references[2])
        old.down()
        source = made["protected"]["id"]
        replica = kept / source
        shutil.copytree(old.state / "store-1" / "store" / "replicas" / source, replica)
    finally:
        old.close()
    yield Brought(replica, references)
    shutil.rmtree(kept)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    stack = Stack("--server", "here", "--server", "there")
    try:
        stack.up()
        yield stack
    finally:
        stack.close()


@pytest.fixture(scope="module")
def attached(stack: Stack, brought: Brought) -> Any:
    done = stack.json("store", "attach", brought.replica)
    assert done["newest"] == 2
    return done["attached"]


def test_it_is_known_at_once(stack: Stack, attached: Any, brought: Brought) -> None:
    assert (attached["name"], attached["server"]) == ("shop", "old-srv")
    assert attached["protected"] is False
    (listed,) = [one for one in stack.json("status")["sources"] if one["name"] == "shop"]
    assert listed["id"] == attached["id"] == brought.replica.name
    entries = stack.json("browse", "shop", "renamed")["entries"]
    assert {entry["name"]["text"] for entry in entries} == {"small", "linked"}


@pytest.mark.parametrize("point", [1, 2])
def test_each_point_restores(stack: Stack, attached: Any, brought: Brought, point: int) -> None:
    target = stack.work / f"restored-{point}"
    stack.restore("shop", point, target, "--server", "here")
    assert differences(brought.references[point], target) == ""


def test_the_catalog_learns_it(stack: Stack, attached: Any) -> None:
    def known() -> bool:
        listed = stack.json("points", "shop")
        return listed["answered_by"] == "catalog" and len(listed["points"]) == 2

    until(known, "the catalog lists both recovery points", timeout_s=90)
    stack.json("verify", "shop", "--wait")


def test_it_is_attached_once(stack: Stack, attached: Any, brought: Brought) -> None:
    again = stack.json("store", "attach", brought.replica, code=1)
    assert again["error"]["code"] == "store.already_here"
    here = stack.state / "store-1" / "store" / "replicas" / attached["id"]
    assert stack.json("store", "attach", here, code=1)["error"]["code"] == "store.already_here"


def test_foreign_and_damaged_folders_are_refused(stack: Stack, brought: Brought) -> None:
    foreign = stack.work / "foreign"
    foreign.mkdir()
    refused = stack.json("store", "attach", foreign, code=1)["error"]
    assert refused["code"] == "store.not_a_replica"
    assert "replica.json" in refused["hint"]


def test_a_name_that_is_taken_is_refused_and_another_given(
    stack: Stack, attached: Any, brought: Brought
) -> None:
    other = stack.work / "other"
    shutil.copytree(brought.replica, other)
    data = stack.work / "mine"
    data.mkdir()
    (data / "file").write_text("mine")
    stack.json("protect", data, "--name", "mine", "--server", "here", "--wait")
    stack.json("store", "attach", other, "--name", "mine", code=1)


def test_protection_goes_on_with_the_same_replica(stack: Stack, brought: Brought) -> None:
    """On a stack whose server has the old name, `protect` takes the replica over."""
    fresh = Stack("--server", "old-srv")
    try:
        fresh.up()
        moved = fresh.work / "moved"
        shutil.copytree(brought.replica, moved)
        fresh.json("store", "attach", moved, "--name", "shop again", "--move")
        assert not moved.exists()
        data = fresh.work / "data"
        copy(brought.references[2], data)
        fresh.json("protect", data, "--name", "shop again", "--server", "old-srv", "--wait")
        assert [point["number"] for point in fresh.points("shop again")] == [1, 2, 3]
        for point, reference in (*brought.references.items(), (3, data)):
            target = fresh.work / f"back-{point}"
            fresh.restore("shop again", point, target)
            assert differences(reference, target) == ""
    finally:
        fresh.close()
