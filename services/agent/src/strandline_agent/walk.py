"""Walking the folders of a data source without ever following a link or a long path.

Every folder is opened from its parent's open folder. A few of these are kept open; the others are
opened again, step by step from the root, so that neither the length of a path nor its depth
matters. Where a data source has several paths, the folders above them are *planned*: they show
nothing but what leads to the paths.
"""

from __future__ import annotations

import errno
import os
import stat as stat_module
from collections import OrderedDict
from collections.abc import Collection, Sequence

from strandline_agent.changes import Listed
from strandline_agent.mounts import apart, file_system_id, read_pseudo_devices
from strandline_agent.rules import Excludes, outermost
from strandline_contracts.points import ROOT

MAX_OPEN_FOLDERS = 64
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

Plan = dict[bytes, "Plan | None"]
"""Names of a planned folder; None marks a protected path."""


class Folder:
    """A folder on the way: how to come to it and which file it is.

    `name` is the whole path where it has no parent. `known` tells whether the index can have
    entries of it; `empty` that it shall show none. Paths are put together when they are asked for:
    kept with each folder they would take memory by the square of the depth.
    """

    __slots__ = ("device", "empty", "file", "known", "name", "parent", "plan")

    def __init__(
        self,
        parent: Folder | None,
        name: bytes,
        file: int,
        device: int,
        *,
        known: bool,
        empty: bool,
        plan: Plan | None,
    ) -> None:
        self.parent = parent
        self.name = name
        self.file = file
        self.device = device
        self.known = known
        self.empty = empty
        self.plan = plan

    @property
    def path(self) -> bytes:
        """The absolute path; empty for `/`."""
        names = [self.name]
        here = self
        while here.parent is not None:
            here = here.parent
            names.append(here.name)
        return b"/".join(reversed(names))

    @property
    def relative(self) -> bytes:
        """The path below the protected path, which the excludes see, with a slash at its end."""
        names = [b""]
        here = self
        while here.parent is not None and here.parent.plan is None:
            names.append(here.name)
            here = here.parent
        return b"/".join(reversed(names))


def open_unnoticed(path: bytes, flags: int, folder: int | None = None) -> int:
    """Open without leaving a time of access where that is permitted. Raises OSError."""
    try:
        return os.open(path, flags | os.O_NOATIME, dir_fd=folder)
    except PermissionError:
        return os.open(path, flags, dir_fd=folder)


def open_file(folder: int, name: bytes) -> int:
    """Open the regular file `name` of an open folder for reading, not following a link.

    Raises OSError, ESTALE where something else has come in its place.
    """
    fd = open_unnoticed(name, _OPEN_FILE, folder)
    if not stat_module.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ESTALE, "no regular file any more")
    return fd


def make_plan(paths: Sequence[bytes]) -> Plan:
    """Return the planned folders above several protected paths."""
    root: Plan = {}
    for path in paths:
        here = root
        *above, last = path.strip(b"/").split(b"/")
        for name in above:
            following = here.setdefault(name, {})
            assert following is not None, "no protected path lies in another"
            here = following
        here[last] = None
    return root


class Walk:
    """Opens and lists the folders of a data source.

    `fs_of` maps the devices met so far to file system ids. `missing` are protected paths that do
    not exist. `own_state` are folders, as (st_dev, st_ino), that are left out.
    """

    def __init__(
        self,
        paths: Sequence[bytes],
        excludes: Excludes,
        own_state: Collection[tuple[int, int]],
    ) -> None:
        self.fs_of: dict[int, int] = {0: 0}
        self.missing: list[bytes] = []
        self._excludes = excludes
        self._own_state = frozenset(own_state)
        self._pseudo = read_pseudo_devices()
        self._fds: OrderedDict[Folder, int] = OrderedDict()
        self.paths = outermost(paths)
        self._only = self._single_folder()

    def _single_folder(self) -> bytes | None:
        if len(self.paths) != 1:
            return None
        try:
            mode = os.lstat(self.paths[0]).st_mode
        except OSError:
            return None
        return self.paths[0] if stat_module.S_ISDIR(mode) else None

    def root(self, *, known: bool) -> tuple[Folder, os.stat_result | None]:
        """Return the root and its attributes, None when it is a planned folder."""
        if self._only is None:
            paths = [path for path in self.paths if path != b"/"]
            root = Folder(
                None, b"", ROOT, 0, known=known, empty=False, plan=make_plan(paths)
            )  # fmt: skip
            return root, None
        stat = os.lstat(self._only)
        root = Folder(
            None, self._only.rstrip(b"/"), ROOT, stat.st_dev, known=known,
            empty=stat.st_dev in self._pseudo, plan=None,
        )  # fmt: skip
        return root, stat

    def child(self, folder: Folder, listed: Listed, file: int, *, known: bool) -> Folder:
        """Return the folder that `listed` is, `file` being its id."""
        name, stat = listed
        plan = folder.plan.get(name) if folder.plan is not None else None
        return Folder(
            folder,
            name,
            file,
            stat.st_dev,
            known=known,
            empty=stat.st_dev in self._pseudo and plan is None,
            plan=plan,
        )

    def open(self, folder: Folder) -> int:
        """Return an open folder; it stays open until others push it out. Raises OSError."""
        fd = self._fds.get(folder)
        if fd is not None:
            self._fds.move_to_end(folder)
            return fd
        way = [folder]
        while way[-1].parent is not None and way[-1].parent not in self._fds:
            way.append(way[-1].parent)
        for step in reversed(way):
            fd = self._open_step(step)
            self._keep(step, fd)
        assert fd is not None
        return fd

    def _open_step(self, folder: Folder) -> int:
        if folder.parent is None or folder.plan is not None:
            # The root, and what leads to protected paths, are as the person has named them.
            return open_unnoticed(folder.path or b"/", _OPEN_FOLDER)
        fd = open_unnoticed(folder.name, _OPEN_FOLDER | os.O_NOFOLLOW, self._fds[folder.parent])
        if os.fstat(fd).st_dev != folder.device:
            os.close(fd)
            raise OSError(errno.ESTALE, "another file system came in its place")
        return fd

    def _keep(self, folder: Folder, fd: int) -> None:
        self._fds[folder] = fd
        while len(self._fds) > MAX_OPEN_FOLDERS:
            os.close(self._fds.popitem(last=False)[1])

    def close(self) -> None:
        """Close all folders."""
        while self._fds:
            os.close(self._fds.popitem()[1])

    def entries(self, folder: Folder, fd: int) -> tuple[list[Listed], list[tuple[bytes, OSError]]]:
        """Return the entries of an open folder that are kept, and those that cannot be looked at.

        Raises OSError when the folder cannot be read.
        """
        if folder.empty:
            return [], []
        self.learn_device(folder.device, fd)
        if folder.plan is not None:
            return self._list_planned(folder, fd)
        found: list[Listed] = []
        bad: list[tuple[bytes, OSError]] = []
        device = folder.device
        excludes = self._excludes
        relative = folder.relative if excludes else b""
        encode = os.fsencode
        with os.scandir(fd) as entries:
            for entry in entries:
                try:
                    stat = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    bad.append((encode(entry.name), error))
                    continue
                name = encode(entry.name)
                if excludes and self._is_excluded(relative, name, stat):
                    continue
                if stat.st_mode & 0o170000 == 0o040000 and self._is_own(stat):
                    continue
                if stat.st_dev != device:
                    self._learn_entry_device(stat.st_dev, fd, name)
                found.append(Listed(name, stat))
        return found, bad

    def _list_planned(
        self, folder: Folder, fd: int
    ) -> tuple[list[Listed], list[tuple[bytes, OSError]]]:
        assert folder.plan is not None
        found: list[Listed] = []
        bad: list[tuple[bytes, OSError]] = []
        for name, below in folder.plan.items():
            try:
                stat = os.stat(name, dir_fd=fd, follow_symlinks=below is not None)
            except (FileNotFoundError, NotADirectoryError):
                self.missing += _protected_in(folder.path + b"/" + name, below)
                continue
            except OSError as error:
                bad.append((name, error))
                continue
            self._learn_entry_device(stat.st_dev, fd, name)
            if not self._is_own(stat):
                found.append(Listed(name, stat))
        return found, bad

    def _is_excluded(self, relative: bytes, name: bytes, stat: os.stat_result) -> bool:
        return self._excludes.leaves_out(
            relative + name, is_folder=stat_module.S_ISDIR(stat.st_mode)
        )

    def _is_own(self, stat: os.stat_result) -> bool:
        return (stat.st_dev, stat.st_ino) in self._own_state

    def learn_device(self, device: int, fd: int) -> None:
        """Make sure that `fs_of` knows the device of an open file."""
        if device not in self.fs_of:
            fs = file_system_id(fd, device)
            self.fs_of[device] = apart(fs, device, self.fs_of.values())

    def _learn_entry_device(self, device: int, folder: int, name: bytes) -> None:
        if device in self.fs_of:
            return
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        except OSError:
            self.fs_of[device] = device
            return
        try:
            self.learn_device(device, fd)
        finally:
            os.close(fd)


def _protected_in(path: bytes, plan: Plan | None) -> list[bytes]:
    if plan is None:
        return [path]
    return [
        found for name, below in plan.items() for found in _protected_in(path + b"/" + name, below)
    ]
