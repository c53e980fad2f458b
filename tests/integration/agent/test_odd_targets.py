"""Restores onto what is there already, onto other file systems, and of what few files have."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.agent_site import Site
from support.trees import differences


def owner_and_mode(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


async def test_folders_on_the_way_that_are_there_stay_as_they_are(site: Site) -> None:
    docs = site.src / "home" / "docs"
    docs.mkdir(parents=True)
    (docs / "letter").write_bytes(b"dear")
    (docs / "other").write_bytes(b"kept")
    await site.full()
    (docs / "letter").unlink()
    site.src.chmod(0o750)
    (site.src / "home").chmod(0o700)
    docs.chmod(0o2770)
    folders = [site.src, site.src / "home", docs]
    if os.geteuid() == 0:
        for folder in folders:
            os.chown(folder, 1000, 1000)
        docs.chmod(0o2770)
    before = [owner_and_mode(folder) for folder in folders]
    restored = await site.back("src", paths=(b"home/docs/letter",), overwrite=True)
    assert restored.issues == []
    assert [owner_and_mode(folder) for folder in folders] == before
    assert (docs / "letter").read_bytes() == b"dear"
    assert (docs / "other").read_bytes() == b"kept"


async def test_folders_on_the_way_that_are_made_are_open_to_others(site: Site) -> None:
    (site.src / "a" / "b").mkdir(parents=True)
    (site.src / "a").chmod(0o700)
    (site.src / "a" / "b" / "file").write_bytes(b"x")
    await site.full()
    umask = os.umask(0o022)
    try:
        await site.back("out", paths=(b"a/b/file",))
    finally:
        os.umask(umask)
    out = site.folder / "out"
    modes = [owner_and_mode(folder)[2] for folder in (out, out / "a", out / "a" / "b")]
    assert modes == [0o755] * 3


async def test_a_time_that_few_programs_know(site: Site) -> None:
    (site.src / "far").write_bytes(b"future")
    os.utime(site.src / "far", ns=(2**63 + 10**15, 2**63 + 10**15))
    if (site.src / "far").stat().st_mtime_ns < 2**63:
        pytest.fail("this file system has no such times: run the tests on ext4, XFS or tmpfs")
    (site.src / "near").write_bytes(b"present")
    await site.full()
    (site.src / "near").write_bytes(b"later")
    await site.full()
    await site.back("out")
    assert (site.folder / "out" / "far").read_bytes() == b"future"
    assert (site.folder / "out" / "near").read_bytes() == b"later"


async def test_a_target_that_cannot_allocate(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def emulated(fd: int, offset: int, length: int) -> None:
        """As the C library does it: look whether a block is zero, and write a zero there."""
        for at in range(offset, offset + length, 4096):
            if not any(os.pread(fd, 1, at)):
                os.pwrite(fd, b"\0", at)

    monkeypatch.setattr(os, "posix_fallocate", emulated)
    (site.src / "zeros").write_bytes(b"begin" + bytes(100_000) + b"end")
    await site.full()
    restored = await site.back("out")
    assert restored.issues == []
    assert differences(site.src, site.folder / "out") == ""


async def test_a_name_too_long_for_the_target_costs_that_entry_alone(site: Site) -> None:
    (site.src / "folder").mkdir()
    (site.src / "folder" / "inside").write_bytes(b"x")
    (site.src / "file").write_bytes(b"y")
    (site.src / "other").write_bytes(b"z")
    await site.full()
    long = "ж".encode() * 200
    names = site.store.states[1].names
    for old, new in ((b"folder", long + b"d"), (b"file", long + b"f")):
        [key] = [key for key in names if key[1] == old]
        names[key[0], new] = names.pop(key)
    restored = await site.back("out")
    paths = {issue.path for issue in restored.issues}
    assert paths == {long + b"d", long + b"d/inside", long + b"f"}
    assert (site.folder / "out" / "other").read_bytes() == b"z"
    assert os.listdir(site.folder / "out") == ["other"]


async def test_an_attribute_with_an_odd_name_that_the_target_refuses(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site.src / "file").write_bytes(b"x")
    os.setxattr(site.src / "file", b"user.\xff", b"value")
    await site.full()
    real = os.setxattr

    def refuse(path: Any, name: bytes, *args: Any, **kwargs: Any) -> None:
        if b"\xff" in name:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        real(path, name, *args, **kwargs)

    monkeypatch.setattr(os, "setxattr", refuse)
    restored = await site.back("out")
    assert [(issue.code, issue.text) for issue in restored.issues] == [
        ("metadata", "xattr user.\ufffd: Operation not supported")
    ]


async def test_no_file_runs_with_the_rights_of_who_restores_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site.src / "tool").write_bytes(b"#!")
    (site.src / "tool").chmod(0o4755)
    await site.full()
    inodes = site.store.states[1].inodes
    for file, inode in inodes.items():
        if inode.type == "f":
            inodes[file] = msgspec.structs.replace(inode, uid=inode.uid + 7)

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chown", refuse)
    restored = await site.back("out")
    assert stat.S_IMODE((site.folder / "out" / "tool").stat().st_mode) == 0o755
    assert any("set-user-id" in issue.text for issue in restored.issues)
