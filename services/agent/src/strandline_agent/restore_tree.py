"""Making files in the target of a restore, and nowhere else.

Every step goes from an open folder to an entry of it, never through a path and never through a
link: what somebody puts in the way during a restore is replaced or refused, not followed. While a
restore works, its folders belong to the agent and are open to nobody else.
"""

from __future__ import annotations

import errno
import os
import stat as stat_module
from collections import OrderedDict
from collections.abc import Callable, Collection
from functools import partial

from strandline_agent import linux
from strandline_agent.attributes import shown_xattr, through
from strandline_agent.errors import RestoreFailed, RestoreRefused
from strandline_agent.restore_plan import Node, RestorePlan
from strandline_contracts.points import Inode

MAX_OPEN_FOLDERS = 64
MAX_OPEN_FILES = 128
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FATAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENODEV, errno.EMFILE})
_NODES = {
    "p": stat_module.S_IFIFO,
    "s": stat_module.S_IFSOCK,
    "b": stat_module.S_IFBLK,
    "c": stat_module.S_IFCHR,
}
_AS_OWNER = stat_module.S_ISUID | stat_module.S_ISGID
_MANAGED_XATTRS = ("user.", "trusted.", "system.posix_acl_", "security.capability")


def open_target(to: bytes, *, overwrite: bool, resumed: bool) -> int:
    """Open the folder to restore to, made if only its last part is missing.

    Raises RestoreRefused when it is not absolute, has no parent, is no folder, or is not empty and
    neither `overwrite` nor `resumed` is set.
    """
    shown = to.decode("utf-8", "replace")
    if not to.startswith(b"/") or b"\0" in to or b".." in to.split(b"/"):
        raise RestoreRefused(f"the target {shown!r} is not an absolute path")
    try:
        if not os.path.lexists(to):
            os.mkdir(to, 0o755)
        fd = os.open(to, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise RestoreRefused(
            f"the folder above {shown} does not exist",
            code="restore.no_parent",
            hint="Make it, or choose another folder.",
        ) from error
    except NotADirectoryError as error:
        raise RestoreRefused(f"{shown} is not a folder", code="restore.no_folder") from error
    except OSError as error:
        raise RestoreFailed(f"{shown}: {error.strerror}") from error
    if not overwrite and not resumed and os.listdir(fd):
        os.close(fd)
        raise RestoreRefused(
            f"{shown} is not empty",
            code="restore.not_empty",
            hint="Choose an empty folder, or allow it with --overwrite.",
        )
    return fd


class Problem(Exception):
    """One path that cannot be restored as it should: the job goes on."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def problem(error: OSError, code: str = "unsupported") -> Problem:
    """Return the problem that `error` is for one path; raise RestoreFailed if it is one for all."""
    if error.errno in _FATAL:
        raise RestoreFailed(f"the target: {error.strerror}") from error
    return Problem(code, error.strerror or str(error))


class TargetTree:
    """The folders of a target, opened as needed. For one thread."""

    def __init__(self, plan: RestorePlan, target: int) -> None:
        self._plan = plan
        self._root = plan.root
        self._target = target
        self._folders: OrderedDict[int, int] = OrderedDict()
        self._files: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self._expected: dict[int, Node] = {}

    def close(self) -> None:
        """Close everything but the target itself."""
        while self._folders:
            os.close(self._folders.popitem()[1])
        while self._files:
            os.close(self._files.popitem()[1][0])

    def folder(self, file: int) -> int:
        """Return an open folder of the plan. Raises OSError when it is not there as a folder."""
        if file == self._root:
            return self._target
        way: list[Node] = []
        here = file
        while here != self._root and here not in self._folders:
            node = self._plan.node(here)
            assert node is not None, "folders of the plan reach up to its root"
            if node.skip:
                raise OSError(errno.ENOENT, "its folder could not be made")
            way.append(node)
            here = node.parent
        fd = self._target if here == self._root else self._folders[here]
        for node in reversed(way):
            fd = os.open(node.name, _FOLDER, dir_fd=fd)
            self._folders[node.file] = fd
            while len(self._folders) > MAX_OPEN_FOLDERS:
                os.close(self._folders.popitem(last=False)[1])
        self._folders.move_to_end(file)
        return fd

    def expect(self, files: Collection[int]) -> None:
        """Look these files up in the plan at once: they are to be written next."""
        unopened = [file for file in files if file not in self._files]
        self._expected = self._plan.nodes(unopened[:MAX_OPEN_FILES])

    def writable(self, file: int) -> tuple[int, int] | None:
        """Return a regular file, open for writing, and its size; None for one that is skipped.

        Raises OSError, Problem.
        """
        held = self._files.get(file)
        if held is not None:
            self._files.move_to_end(file)
            return held
        node = self._expected.get(file) or self._plan.node(file)
        if node is None or node.skip or node.type != "f":
            return None
        # Read as well: where a file system cannot allocate, the C library looks for what is zero.
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(node.name, flags, dir_fd=self.folder(node.parent))
        stat = os.fstat(fd)
        if not stat_module.S_ISREG(stat.st_mode) or stat.st_nlink != 1:
            os.close(fd)
            raise Problem("unsupported", "somebody has put another file in its place")
        self._files[file] = fd, node.size
        while len(self._files) > MAX_OPEN_FILES:
            os.close(self._files.popitem(last=False)[1][0])
        return self._files[file]

    # Making entries

    def make_folder(self, node: Node) -> None:
        """Make a folder, open to nobody else. Raises OSError, Problem.

        One that is only on the way to others is a plain one, or stays as it is when it is there.
        """
        if node.file != self._root:
            _make_folder(self.folder(node.parent), node.name, 0o700 if node.inode else 0o755)
        if node.inode is not None:
            _close_to_others(self.folder(node.file))

    def make_file(self, node: Node, *, devices: bool) -> None:
        """Make what is no folder, without content and attributes. Raises OSError, Problem."""
        assert node.inode is not None
        parent = self.folder(node.parent)
        if node.type in "bc" and not devices:
            raise Problem("unsupported", "a device node; they are restored with --devices only")
        try:
            _create(parent, node, node.inode)
        except FileExistsError:
            remove(parent, node.name)
            _create(parent, node, node.inode)

    def make_link(self, parent: int, name: bytes, file: int) -> None:
        """Give a file that is made another name. Raises OSError, Problem."""
        node = self._plan.node(file)
        if node is None or node.skip:
            raise Problem("unsupported", "the file that it is another name of is missing")
        # The next folder() may close what this one gives, and its number be another's then.
        source = os.dup(self.folder(node.parent))
        try:
            _link(source, node.name, self.folder(parent), name)
        finally:
            os.close(source)

    # Attributes

    def finish_file(self, node: Node) -> list[str]:
        """Give what is no folder its attributes; returns what could not be set."""
        assert node.inode is not None
        parent = self.folder(node.parent)
        if node.type == "l":
            return _finish_symlink(parent, node.name, node.inode)
        flags = os.O_PATH if node.type != "f" else os.O_RDONLY | os.O_NONBLOCK
        fd = os.open(node.name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            links = os.fstat(fd).st_nlink
            if links > 1 and links > self._plan.count_names(node.file):
                return ["somebody has put another file in its place"]
            return _finish(fd, node.type, node.inode)
        finally:
            os.close(fd)

    def finish_folder(self, node: Node) -> list[str]:
        """Give a folder its attributes, after everything in it; returns what could not be set."""
        return [] if node.inode is None else _finish(self.folder(node.file), "d", node.inode)


def _make_folder(parent: int, name: bytes, mode: int) -> None:
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:
        stat = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if not stat_module.S_ISDIR(stat.st_mode):
            os.unlink(name, dir_fd=parent)
            os.mkdir(name, mode, dir_fd=parent)


def _create(parent: int, node: Node, inode: Inode) -> None:
    if node.type == "f":
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(node.name, flags, 0o600, dir_fd=parent)
        try:
            if inode.size:
                os.ftruncate(fd, inode.size)
        finally:
            os.close(fd)
    elif node.type == "l":
        os.symlink(inode.target, node.name, dir_fd=parent)
    else:
        os.mknod(node.name, _NODES[node.type] | 0o600, inode.rdev, dir_fd=parent)


def _link(source: int, old: bytes, target: int, name: bytes) -> None:
    link = partial(os.link, old, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    try:
        link()
    except FileExistsError:
        remove(target, name)
        link()


def remove(parent: int, name: bytes) -> None:
    """Remove what is in the way: a file, a link, an empty folder. Raises OSError, Problem."""
    try:
        os.unlink(name, dir_fd=parent)
    except IsADirectoryError:
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError as error:
            raise Problem("unsupported", "a folder that is not empty is in its place") from error


def _close_to_others(fd: int) -> None:
    if os.geteuid() == 0:
        os.fchown(fd, 0, 0)
    os.fchmod(fd, 0o700)


def _finish(fd: int, kind: str, inode: Inode) -> list[str]:
    """Set owner, xattrs, mode and times, in this order: each may undo what comes after it."""
    where: int | bytes = fd if kind in "fd" else through(fd, b"")
    problems: list[str] = []
    stat = os.fstat(fd)
    if stat_module.S_IFMT(stat.st_mode) != _MODE_OF[kind]:
        return ["somebody has put another file in its place"]
    mode = inode.mode
    if (stat.st_uid, stat.st_gid) != (inode.uid, inode.gid):
        _try(problems, "owner", lambda: os.chown(where, inode.uid, inode.gid))
        if problems and mode & _AS_OWNER and kind == "f":
            # It would run with the rights of whoever restores it.
            mode &= ~_AS_OWNER
            problems.append("mode: set-user-id and set-group-id are left out for another owner")
    _set_xattrs(where, inode, problems, follow=True)
    _try(problems, "mode", lambda: os.chmod(where, mode))
    _try(problems, "times", lambda: os.utime(where, ns=(inode.atime_ns, inode.mtime_ns)))
    return problems


_MODE_OF = {"f": stat_module.S_IFREG, "d": stat_module.S_IFDIR, **_NODES}


def _finish_symlink(parent: int, name: bytes, inode: Inode) -> list[str]:
    problems: list[str] = []
    stat = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if not stat_module.S_ISLNK(stat.st_mode):
        return ["somebody has put another file in its place"]
    if (stat.st_uid, stat.st_gid) != (inode.uid, inode.gid):
        _try(
            problems,
            "owner",
            lambda: os.chown(name, inode.uid, inode.gid, dir_fd=parent, follow_symlinks=False),
        )
    _set_xattrs(through(parent, name), inode, problems, follow=False)
    times = (inode.atime_ns, inode.mtime_ns)
    _try(
        problems,
        "times",
        lambda: os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False),
    )
    return problems


def _set_xattrs(where: int | bytes, inode: Inode, problems: list[str], *, follow: bool) -> None:
    wanted = dict(inode.xattrs)
    try:
        present = os.listxattr(where, follow_symlinks=follow)
    except OSError:
        present = []
    for name in present:
        # A default ACL of the folder above has been inherited: the file had none.
        if name.startswith(_MANAGED_XATTRS) and os.fsencode(name) not in wanted:
            _try(
                problems,
                f"xattr {shown_xattr(os.fsencode(name))}",
                partial(os.removexattr, where, name, follow_symlinks=follow),
            )
    for key, value in wanted.items():
        _try(
            problems,
            f"xattr {shown_xattr(key)}",
            partial(os.setxattr, where, key, value, follow_symlinks=follow),
        )


def _try(problems: list[str], what: str, act: Callable[[], None]) -> None:
    try:
        act()
    except OSError as error:
        if error.errno in _FATAL:
            raise
        problems.append(f"{what}: {error.strerror}")


def sync(target: int) -> None:
    """Write all that was restored to the disk. Raises RestoreFailed."""
    try:
        linux.syncfs(target)
    except OSError as error:
        raise RestoreFailed(f"the target: {error.strerror}") from error
