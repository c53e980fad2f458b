"""What a file is, beside its content: the Inode record of an entry of an open folder."""

from __future__ import annotations

import errno
import os
import stat as stat_module

from blake3 import blake3

from strandline_agent.known import FileRow
from strandline_contracts.codec import encode
from strandline_contracts.points import FileType, Inode

MAX_XATTRS_BYTES = 512 * 1024
"""A record has to fit into a batch; Linux gives one file rarely more than 64 KiB."""

_TYPES: dict[int, FileType] = {
    stat_module.S_IFREG: "f",
    stat_module.S_IFDIR: "d",
    stat_module.S_IFLNK: "l",
    stat_module.S_IFIFO: "p",
    stat_module.S_IFSOCK: "s",
    stat_module.S_IFBLK: "b",
    stat_module.S_IFCHR: "c",
}
_MAX = 2**63 - 1
_NO_XATTRS = frozenset({errno.ENOTSUP, errno.ENODATA, errno.ENOENT, errno.EINVAL})


def type_of(mode: int) -> FileType:
    """Return the type that st_mode tells."""
    return _TYPES[stat_module.S_IFMT(mode)]


def same_type(one: int, other: int) -> bool:
    return stat_module.S_IFMT(one) == stat_module.S_IFMT(other)


def through(folder: int, name: bytes) -> bytes:
    """Return a short path to an entry of an open folder, for calls that take no folder."""
    return b"/proc/self/fd/%d/%b" % (folder, name) if name else b"/proc/self/fd/%d" % folder


def shown_xattr(name: bytes) -> str:
    """Return the name of an extended attribute as text for people."""
    return name.decode("utf-8", "replace")


def read_xattrs(path: bytes | int) -> tuple[list[tuple[bytes, bytes]], list[str]]:
    """Return a file's extended attributes, ACLs among them, and what could not be read of them.

    `path` is an open file, or a path whose last part is not followed.
    """
    follow = isinstance(path, int)
    found: list[tuple[bytes, bytes]] = []
    problems: list[str] = []
    try:
        names = os.listxattr(path, follow_symlinks=follow)
    except OSError as error:
        return found, [] if error.errno in _NO_XATTRS else [f"xattrs: {error.strerror}"]
    size = 0
    for name in sorted(names):
        shown = shown_xattr(os.fsencode(name))
        try:
            value = os.getxattr(path, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in _NO_XATTRS:
                problems.append(f"xattr {shown}: {error.strerror}")
            continue
        size += len(value) + len(name)
        if size > MAX_XATTRS_BYTES:
            problems.append(f"xattr {shown}: more than {MAX_XATTRS_BYTES} bytes in all")
            break
        found.append((os.fsencode(name), value))
    return found, problems


def make_inode(
    file: int,
    stat: os.stat_result,
    *,
    fs: int,
    birth_ns: int,
    xattrs: list[tuple[bytes, bytes]],
    target: bytes = b"",
    changing: bool = False,
) -> Inode:
    """Return the Inode record for a stat result; only regular files and symlinks have a size."""
    type_ = type_of(stat.st_mode)
    return Inode(
        file=file,
        type=type_,
        mode=stat_module.S_IMODE(stat.st_mode),
        uid=stat.st_uid,
        gid=stat.st_gid,
        size=stat.st_size if type_ in "fl" else 0,
        mtime_ns=_representable(stat.st_mtime_ns),
        ctime_ns=_representable(stat.st_ctime_ns),
        atime_ns=_representable(stat.st_atime_ns),
        birth_ns=birth_ns,
        fs=fs,
        ino=index_ino(stat.st_ino),
        rdev=stat.st_rdev if type_ in "bc" else 0,
        target=target,
        xattrs=xattrs,
        changing=changing,
    )


def index_ino(ino: int) -> int:
    """Return an inode number as records and the index have it: 63 bits (overlayfs gives 64)."""
    return ino & _MAX


def _representable(time_ns: int) -> int:
    """Return a time, or where it lies beyond 2262 the last one that 64 bits of nanoseconds have."""
    return max(-_MAX, min(time_ns, _MAX))


def attributes_digest(inode: Inode) -> int:
    """Return 63 bits that tell whether anything of `inode` differs that no column holds."""
    rest = Inode(
        file=inode.file,
        type=inode.type,
        mode=0,
        uid=0,
        gid=0,
        size=0,
        mtime_ns=0,
        ctime_ns=0,
        atime_ns=0,
        birth_ns=0,
        fs=0,
        ino=0,
        rdev=inode.rdev,
        target=inode.target,
        xattrs=inode.xattrs,
        changing=inode.changing,
    )
    return int.from_bytes(blake3(encode(rest)).digest(length=8), "little") >> 1


def row_of(inode: Inode, *, size: int, suspect: bool, changed: int) -> FileRow:
    """Return the index's row for `inode`; `size` is st_size, which folders have too.

    A `suspect` file may change without its ctime telling: it is read again next time.
    """
    return FileRow(
        id=inode.file,
        fs=inode.fs,
        ino=inode.ino,
        birth_ns=inode.birth_ns,
        mode=inode.mode | _MODES[inode.type],
        uid=inode.uid,
        gid=inode.gid,
        size=size,
        mtime_ns=inode.mtime_ns,
        ctime_ns=0 if suspect else inode.ctime_ns,
        attributes=attributes_digest(inode),
        changed=changed,
        digests=1,
    )


_MODES = {letter: mode for mode, letter in _TYPES.items()}


def inode_differs(inode: Inode, row: FileRow) -> bool:
    """Tell whether a record says anything that the replica does not have (atime does not count)."""
    return (
        row.mode != inode.mode | _MODES[inode.type]
        or (row.uid, row.gid) != (inode.uid, inode.gid)
        or (row.mtime_ns, row.ctime_ns) != (inode.mtime_ns, inode.ctime_ns)
        or (row.fs, row.ino, row.birth_ns) != (inode.fs, inode.ino, inode.birth_ns)
        or (inode.type in "fl" and row.size != inode.size)
        or row.attributes != attributes_digest(inode)
    )


def may_change_unseen(stat: os.stat_result, clock_ns: int) -> bool:
    """Tell whether a later change could leave the same ctime as `stat` has.

    `clock_ns` is CLOCK_REALTIME_COARSE, which stamps files, read before the file was. File systems
    that keep whole seconds only get two seconds of room.
    """
    room = 2_000_000_000 if stat.st_ctime_ns % 1_000_000_000 == 0 else 0
    return stat.st_ctime_ns + room >= clock_ns
