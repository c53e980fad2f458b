"""A disk that remembers what was written and what was made to last, from a program's system calls.

`record` runs a program under strace. Feeding its calls to a `Disk` one by one gives, at each
moment, what could be found after a loss of power: bytes that were not fsynced may be there, be
missing or be torn at sectors, and so may names whose folder was not fsynced.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SECTOR_BYTES = 512
_CALLS = (
    "openat,open,creat,close,dup,dup2,dup3,write,pwrite64,writev,pwritev,pwritev2,lseek,ftruncate,"
    "truncate,fallocate,copy_file_range,sendfile,fsync,fdatasync,sync_file_range,sync,syncfs,"
    "rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,link,linkat,symlink,symlinkat"
)
_LINE = re.compile(r"^(\d+) +(\w+)\((.*)\) += (-?\d+)(?: .*)?$", re.DOTALL)
_UNFINISHED = re.compile(r"^(\d+) +(.*) <unfinished \.\.\.>$", re.DOTALL)
_RESUMED = re.compile(r"^(\d+) +<\.\.\. \w+ resumed>(.*)$", re.DOTALL)
_VECTOR = re.compile(r'iov_base="([^"]*)", iov_len=(\d+)')


class Call(NamedTuple):
    """A system call that succeeded."""

    name: str
    arguments: list[str]
    text: str
    result: int


def record(argv: Sequence[str], log: Path, env: dict[str, str]) -> None:
    """Run a program under strace, its calls going to `log`; raise when it fails."""
    strace = ["strace", "-f", "--seccomp-bpf", "-xx", "-s", "4194304", "-o", str(log)]
    done = subprocess.run(
        [*strace, "-e", f"trace={_CALLS}", "-e", "signal=none", *argv],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def calls(log: Path) -> Iterator[Call]:
    """Yield the calls of a log that succeeded, in order of their ends."""
    begun: dict[str, str] = {}
    with log.open(encoding="ascii") as lines:
        for line in lines:
            whole = line.rstrip("\n")
            if part := _UNFINISHED.match(whole):
                begun[part[1]] = whole[: part.end(2)]
                continue
            if part := _RESUMED.match(whole):
                whole = begun.pop(part[1]) + part[2]
            match = _LINE.match(whole)
            if match and int(match[4]) >= 0:
                yield Call(match[2], match[3].split(", "), match[3], int(match[4]))


def _bytes(argument: str) -> bytes:
    assert argument[0] == argument[-1] == '"', argument[:80]
    return bytes.fromhex(argument[1:-1].replace("\\x", ""))


class _Write(NamedTuple):
    offset: int
    data: bytes


class _File:
    """A file's bytes: those that last, and what was done since."""

    def __init__(self) -> None:
        self.lasting = b""
        self.live = bytearray()
        self.pending: list[_Write | int] = []
        """A number is a truncation to it."""

    def do(self, change: _Write | int) -> None:
        self.pending.append(change)
        _apply(self.live, change)

    def sync(self) -> None:
        self.lasting = bytes(self.live)
        self.pending = []

    def torn(self, rng: random.Random) -> bytes:
        """Return the bytes with each change since the last sync there, gone or torn."""
        data = bytearray(self.lasting)
        for change in self.pending:
            fate = rng.random()
            if fate < 0.4:
                _apply(data, change)
            elif fate < 0.8 and isinstance(change, _Write):
                _tear(data, change, rng)
        return bytes(data)


def _apply(data: bytearray, change: _Write | int) -> None:
    size_bytes = change if isinstance(change, int) else change.offset
    if len(data) < size_bytes:
        data.extend(bytes(size_bytes - len(data)))
    if isinstance(change, int):
        del data[change:]
    else:
        data[change.offset : change.offset + len(change.data)] = change.data


def _tear(data: bytearray, change: _Write, rng: random.Random) -> None:
    """Write some of a change's sectors: the first ones, or any."""
    end = change.offset + len(change.data)
    first, last = change.offset // SECTOR_BYTES, (end - 1) // SECTOR_BYTES
    sectors = range(first, last + 1)
    if rng.random() < 0.5:
        kept = set(sectors[: rng.randrange(len(sectors) + 1)])
    else:
        kept = {sector for sector in sectors if rng.random() < 0.5}
    for sector in sorted(kept):
        begin = max(change.offset, sector * SECTOR_BYTES)
        stop = min(end, (sector + 1) * SECTOR_BYTES)
        _apply(data, _Write(begin, change.data[begin - change.offset : stop - change.offset]))
    if len(data) < end and rng.random() < 0.3:
        # The new length has reached the disk, the bytes have not.
        _apply(data, end)


class _Naming(NamedTuple):
    """A change of names: `new` leads to `file`, `old` no more. Empty: none."""

    file: int
    old: str
    new: str

    def folders(self) -> set[str]:
        return {os.path.dirname(path) for path in (self.old, self.new) if path}

    def apply(self, names: dict[str, int]) -> None:
        if self.old and names.get(self.old) == self.file:
            del names[self.old]
        if self.new:
            names[self.new] = self.file


_FOLDER = 0
"""Stands for a folder where a file's number is due."""

Image = dict[str, bytes | None]
"""Path below the root -> bytes; None is a folder."""


class Disk:
    """The disk below `root`, as the calls made so far have left it."""

    def __init__(self, root: Path, ignored: Sequence[str] = ("-shm",)) -> None:
        self._root = str(root)
        self._ignored = tuple(ignored)
        self._files: dict[int, _File] = {}
        self._names: dict[str, int] = {self._root: _FOLDER}
        self._lasting_names: dict[str, int] = {self._root: _FOLDER}
        self._pending: list[_Naming] = []
        self._open: dict[int, tuple[int | str, int]] = {}
        """Descriptor -> file number (or the path of a folder), position."""
        self.last = ""
        """The last call that changed something, for people."""

    # Feeding

    def feed(self, call: Call) -> bool:
        """Take a call; tell whether it changed what could be found after a loss of power."""
        changed = self._take(call)
        if changed:
            self.last = f"{call.name} {self._subject(call)} = {call.result}"
        return changed

    def _subject(self, call: Call) -> str:
        if '"' in call.arguments[0] or call.name == "openat":
            return " ".join(_bytes(a).decode() for a in call.arguments if a[0] == '"')
        number = self._open[int(call.arguments[0])][0]
        paths = [path for path, found in self._names.items() if found == number]
        return str(number) if isinstance(number, str) else " ".join(paths) or "unlinked"

    def _take(self, call: Call) -> bool:
        name = call.name
        if name in ("openat", "open"):
            return self._opened(call)
        if name == "close":
            self._open.pop(int(call.arguments[0]), None)
            return False
        if name in ("rename", "unlink", "mkdir", "renameat", "unlinkat", "mkdirat", "renameat2"):
            return self._named(call)
        if name == "rmdir":
            assert not self._mine(_bytes(call.arguments[0]).decode()), call.text
            return False
        subject = self._open.get(int(call.arguments[0])) if call.arguments[0].isdigit() else None
        return self._on_descriptor(call, subject) if subject is not None else False

    def _mine(self, path: str) -> bool:
        below = path == self._root or path.startswith(self._root + "/")
        return below and not path.endswith(self._ignored)

    def _opened(self, call: Call) -> bool:
        path, flags = (
            _bytes(call.arguments[-3 if "O_CREAT" in call.text else -2]).decode(),
            call.text,
        )
        self._open.pop(call.result, None)
        if not self._mine(path):
            return False
        number = self._names.get(path)
        if number == _FOLDER:
            self._open[call.result] = (path, 0)
            return False
        assert "O_APPEND" not in flags, call.text
        made = number is None
        if number is None:
            number = len(self._files) + 1
            self._files[number] = _File()
            self._name(_Naming(number, "", path))
        file = self._files[number]
        cut = "O_TRUNC" in flags and len(file.live) > 0
        if cut:
            file.do(0)
        self._open[call.result] = (number, 0)
        return made or cut

    def _named(self, call: Call) -> bool:
        paths = [_bytes(part).decode() for part in call.arguments if part.startswith('"')]
        if not any(map(self._mine, paths)):
            return False
        assert all(map(self._mine, paths)), call.text
        assert not call.name.endswith("2") or call.arguments[-1] == "0", call.text
        if call.name.startswith("mkdir"):
            self._name(_Naming(_FOLDER, "", paths[0]))
            return True
        number = self._names[paths[0]]
        assert number != _FOLDER, f"folders are not moved nor removed: {call.text}"
        self._name(_Naming(number, paths[0], paths[1] if len(paths) > 1 else ""))
        return True

    def _name(self, change: _Naming) -> None:
        self._pending.append(change)
        change.apply(self._names)

    def _on_descriptor(self, call: Call, subject: tuple[int | str, int]) -> bool:
        fd = int(call.arguments[0])
        number, position = subject
        if call.name in ("fsync", "fdatasync"):
            return self._synced(number)
        assert isinstance(number, int), call.text
        file = self._files[number]
        if call.name == "lseek":
            self._open[fd] = (number, call.result)
            return False
        if call.name == "ftruncate":
            file.do(int(call.arguments[1]))
            return True
        if call.name == "pwrite64":
            file.do(_Write(int(call.arguments[3]), _bytes(call.arguments[1])[: call.result]))
            return True
        if call.name == "writev":
            data = b"".join(_bytes(f'"{part}"') for part, _ in _VECTOR.findall(call.text))
        else:
            assert call.name == "write", call.text[:200]
            data = _bytes(call.arguments[1])
        file.do(_Write(position, data[: call.result]))
        self._open[fd] = (number, position + call.result)
        return True

    def _synced(self, subject: int | str) -> bool:
        if isinstance(subject, int):
            self._files[subject].sync()
            return True
        for change in self._pending:
            if subject in change.folders():
                change.apply(self._lasting_names)
        self._pending = [c for c in self._pending if subject not in c.folders()]
        return True

    # After a loss of power

    def everything(self) -> Image:
        """Return what is found when all that was written has reached the disk."""
        return self._image(self._names, lambda file: bytes(file.live))

    def lasting(self, *, names: bool = False, data: bool = False) -> Image:
        """Return what is found when only what was fsynced is there; and all names, or all data."""
        return self._image(
            self._names if names else self._lasting_names,
            lambda file: bytes(file.live) if data else file.lasting,
        )

    def torn(self, rng: random.Random) -> Image:
        """Return what is found when anything that was not fsynced may be there, or half."""
        names = dict(self._lasting_names)
        in_order = rng.random() < 0.5
        some = rng.randrange(len(self._pending) + 1)
        for position, change in enumerate(self._pending):
            if (position < some) if in_order else (rng.random() < 0.5):
                change.apply(names)
        return self._image(names, lambda file: file.torn(rng))

    def _image(self, names: dict[str, int], bytes_of: Callable[[_File], bytes]) -> Image:
        image: Image = {}
        start = len(self._root) + 1
        for path in sorted(names):
            folder = os.path.dirname(path)
            if folder == self._root or image.get(folder[start:], b"") is None:
                number = names[path]
                image[path[start:]] = bytes_of(self._files[number]) if number else None
        return image


def write_image(image: Image, folder: Path) -> None:
    """Make `folder`, which must not exist, what an image says."""
    folder.mkdir()
    for path in sorted(image):
        data = image[path]
        if data is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(data)


def said(call: Call) -> list[dict[str, Any]]:
    """Return what the program has told on its standard output by this call, a JSON object a line;
    other lines are its log."""
    if call.name != "write" or call.arguments[0] != "1":
        return []
    lines = _bytes(call.arguments[1]).splitlines()
    return [json.loads(line) for line in lines if line.startswith(b"{")]
