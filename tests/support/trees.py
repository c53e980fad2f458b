"""Trees with every kind of content that files have, and rsync as the judge of two trees."""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
import subprocess
from pathlib import Path

BLOCK = 4096


def make_tree(root: Path, seed: int = 1, *, big_bytes: int = 3 << 20) -> None:
    """Fill `root` with files of every kind; what needs root is made when we are root."""
    rng = random.Random(seed)
    root.mkdir(exist_ok=True)
    _content(root, rng, big_bytes)
    _names(root, rng)
    _special(root)
    _links(root)
    if os.geteuid() == 0:
        _as_root(root)
    os.utime(root / "empty", ns=(1_000_000_001, 1_234_567_890_123_456_789))


def _content(root: Path, rng: random.Random, big_bytes: int) -> None:
    (root / "empty").write_bytes(b"")
    (root / "one").write_bytes(b"1")
    (root / "block").write_bytes(rng.randbytes(BLOCK))
    (root / "big").write_bytes(rng.randbytes(big_bytes) + b"end")
    (root / "text").write_bytes(b"the same line again\n" * 20_000)
    (root / "zeros").write_bytes(bytes(1 << 20))
    for number in range(60):
        folder = root / f"d{number % 5}" / f"e{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"f{number}").write_bytes(rng.randbytes(rng.randrange(12_000)))
    with (root / "sparse").open("wb") as file:
        for offset in (5 << 20, 40 << 20):
            file.seek(offset)
            file.write(rng.randbytes(5000))
        file.truncate(64 << 20)


def _names(root: Path, rng: random.Random) -> None:
    for name in (b"line\nbreak", b"no utf-8 \xff\xfe", b" space ", b"-dash", b"\\", "ü".encode()):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(rng.randbytes(10))
    (root / ("n" * 255)).write_bytes(b"long")
    (root / "empty folder").mkdir()


def make_huge(path: Path, size: int = 1 << 40) -> None:
    """Make a sparse file of 1 TiB with a few bytes at both ends."""
    with path.open("wb") as file:
        file.write(b"begin")
        file.seek(size // 2 + 77)
        file.write(b"middle")
        file.truncate(size)


def make_deep(root: Path, levels: int = 40, name: str = "p" * 200) -> None:
    """Make folders in folders, deeper than a path may be long; a file lies at the bottom."""
    fd = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    file = os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    os.write(file, b"deep")
    os.close(file)
    os.close(fd)


def _special(root: Path) -> None:
    os.mkfifo(root / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as sock:
        here = os.getcwd()
        os.chdir(root)
        sock.bind("socket")
        os.chdir(here)
    closed = 0o000 if os.geteuid() == 0 else 0o400  # nobody else may read what has no mode
    for number, mode in enumerate((0o4755, 0o2711, 0o1777, closed, 0o444)):
        path = root / f"mode{number}"
        path.write_bytes(b"mode")
        path.chmod(mode)
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o3775)
    os.setxattr(root / "one", "user.note", b"value\x00\xff")
    os.setxattr(root / "d1", "user.folder", b"x" * 300)
    if shutil.which("setfacl"):
        subprocess.run(["setfacl", "-m", "u:12:rw,g:34:r", root / "text"], check=True)
        subprocess.run(["setfacl", "-d", "-m", "u:12:rwx", root / "d2"], check=True)


def _links(root: Path) -> None:
    os.symlink("one", root / "link")
    os.symlink("/nowhere/at all", root / "dangling")
    os.symlink(b"\xff" * 100, os.fsencode(root) + b"/odd link")
    os.symlink("..", root / "d0" / "up")
    os.link(root / "big", root / "d0" / "hard 1")
    os.link(root / "big", root / "d4" / "hard 2")
    os.link(root / "link", root / "d3" / "hard symlink")
    os.utime(root / "link", ns=(5, 7_000_000_123), follow_symlinks=False)


def _as_root(root: Path) -> None:
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "loop", stat.S_IFBLK | 0o660, os.makedev(7, 200))
    os.chown(root / "block", 1234, 5678)
    os.chown(root / "dangling", 12, 34, follow_symlinks=False)
    os.chown(root / "d3", 99, 98)
    os.setxattr(root / "text", "trusted.secret", b"t")
    os.setxattr(root / "block", "security.note", b"s")


def change_tree(root: Path, seed: int) -> None:
    """Change a tree of `make_tree` in many ways."""
    rng = random.Random(seed)
    with (root / "big").open("r+b") as file:
        for _ in range(5):
            file.seek(rng.randrange(0, 3 << 20))
            file.write(rng.randbytes(100))
    with (root / "text").open("ab") as file:
        file.write(rng.randbytes(10_000))
    os.truncate(root / "block", rng.randrange(4096))
    (root / "d0").rename(root / f"renamed{seed}")
    shutil.rmtree(root / "d1" / "e1", ignore_errors=True)
    (root / "d0").mkdir()
    (root / "d0" / f"new{seed}").write_bytes(rng.randbytes(50_000))
    (root / "one").chmod(rng.choice((0o600, 0o640, 0o755)))
    (root / "link").unlink()
    (root / "link").symlink_to(f"target{seed}")
    (root / "mode0").unlink()
    (root / "mode0").write_bytes(b"again")
    with (root / "sparse").open("r+b") as file:
        file.seek((30 + seed) << 20)
        file.write(b"more")


def differences(one: Path, other: Path) -> str:
    """Return what an independent tool finds different between two trees: nothing when equal."""
    result = subprocess.run(
        ["rsync", "-aHAXn", "--checksum", "--delete", "--itemize-changes", "--devices",
         "--specials", f"{one}/", f"{other}/"],
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    return (result.stdout + result.stderr).decode("utf-8", "replace")
