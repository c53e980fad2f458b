"""The tracker `scan`: walks a data source, compares it with the index, and tells what changed.

Runs in one thread. Attributes, names and what is gone go out at once; files whose content may have
changed are opened here, where their folder is open, and handed to the readers.
"""

from __future__ import annotations

import errno
import os
import stat as stat_module

from strandline_agent import changes, linux
from strandline_agent.attributes import (
    index_ino,
    inode_differs,
    make_inode,
    may_change_unseen,
    read_xattrs,
    row_of,
    same_type,
    through,
)
from strandline_agent.changes import Known, Listed
from strandline_agent.errors import PipelineStopped, SourceMissing
from strandline_agent.known import FileRow, KnownIndex
from strandline_agent.outgoing import GoneInode, GoneName, Outgoing
from strandline_agent.read_files import Readers, ToRead
from strandline_agent.seen import SeenIds
from strandline_agent.walk import Folder, Walk, open_file
from strandline_contracts.points import ROOT, Inode, Issue, Name

_VANISHED = frozenset({errno.ENOENT, errno.ELOOP, errno.ESTALE, errno.ENOTDIR})
_PLANNED_ROOT = Inode(
    file=ROOT,
    type="d",
    mode=0o755,
    uid=0,
    gid=0,
    size=0,
    mtime_ns=0,
    ctime_ns=0,
    atime_ns=0,
    birth_ns=0,
    fs=0,
    ino=0,
)


class Scan:
    """One walk over a data source. `files` counts the entries seen; `partial` as in the RP.

    With `check` every file is read, whatever its times say.
    """

    def __init__(
        self, walk: Walk, index: KnownIndex, readers: Readers, out: Outgoing, *, check: bool
    ) -> None:
        self._walk = walk
        self._index = index
        self._readers = readers
        self._out = out
        self._check = check
        self._is_first = index.mirrored[0] == 0
        self._seen = SeenIds()
        self._stack: list[Folder] = []
        self.files = 0
        self.partial = False

    def run(self) -> None:
        """Walk everything. Raises SourceMissing, PipelineStopped."""
        try:
            self._root()
            while self._stack:
                if self._out.stopped:
                    raise PipelineStopped("the job has stopped")
                self._folder(self._stack.pop())
        finally:
            self._walk.close()
        if self._walk.missing and len(self._walk.missing) == len(self._walk.paths):
            paths = b", ".join(self._walk.missing).decode("utf-8", "replace")
            raise SourceMissing(f"there is no {paths}")
        for path in self._walk.missing:
            self._issue(path, "vanished", "the protected path does not exist")

    def tell_gone(self) -> None:
        """Tell which files have lost their last name; after the readers have ended."""
        for file in self._index.find_gone():
            self._out.put(GoneInode(file))

    def _root(self) -> None:
        # The former root may lie somewhere below now: it must not be taken for the root itself.
        self._seen.add(ROOT)
        root, stat = self._walk.root(known=not self._is_first)
        row = self._index.file(ROOT)
        if stat is None:
            self._attributes(_PLANNED_ROOT, row, 0, suspect=False)
        else:
            try:
                fd = self._walk.open(root)
            except OSError as error:
                raise self._no_root(root.path, error) from error
            fs = self._learn_fs(fd, stat.st_dev)
            xattrs, problems = read_xattrs(fd)
            inode = make_inode(ROOT, stat, fs=fs, birth_ns=linux.birth_ns(fd, b""), xattrs=xattrs)
            self._attributes(inode, row, stat.st_size, suspect=False)
            self._metadata_issues(root.path or b"/", problems)
        self._stack.append(root)

    def _learn_fs(self, fd: int, device: int) -> int:
        self._walk.learn_device(device, fd)
        return self._walk.fs_of[device]

    def _folder(self, folder: Folder) -> None:
        try:
            fd = self._walk.open(folder)
            listed, bad = self._walk.entries(folder, fd)
        except OSError as error:
            self._unreadable_folder(folder, error)
            return
        self.files += len(listed)
        known = self._index.folder(folder.file) if folder.known else []
        if self._check:
            found = changes.all_changed(known, listed)
        else:
            found = changes.compare(known, listed, self._walk.fs_of)
        for entry, old in found.changed:
            self._changed(folder, fd, entry, old)
        for entry, old in found.same_folders:
            if old[1] in self._seen:
                # It shows at another place too, which has taken its id: a new bind mount.
                self._changed(folder, fd, entry, Known(*old))
                continue
            self._seen.add(old[1])
            self._stack.append(self._walk.child(folder, entry, old[1], known=True))
        self._gone(folder, found.gone, {name for name, _ in bad})
        for name, problem in bad:
            is_known = any(old.name == name for old in found.gone)
            self._unreadable(folder.path + b"/" + name, problem, has_older=is_known)

    def _changed(self, folder: Folder, fd: int, entry: Listed, old: Known | None) -> None:
        name, stat = entry
        fs = self._walk.fs_of[stat.st_dev]
        birth_ns = linux.birth_ns(fd, name)
        file, row = self._identify(stat, fs, birth_ns, old)
        is_folder = stat_module.S_ISDIR(stat.st_mode)
        is_linked = stat.st_nlink > 1 and not is_folder
        if not is_folder and file in self._seen:
            # Another name of it, or it was moved to where the walk came later: two readers would
            # undo each other's work. A change after it was read shows in its ctime the next time.
            self._name(folder, name, file, old)
            return
        task: ToRead | None = None
        if stat_module.S_ISREG(stat.st_mode):
            path = folder.path + b"/" + name
            try:
                task = ToRead(
                    open_file(fd, name),
                    file,
                    path,
                    stat=stat,
                    fs=fs,
                    birth_ns=birth_ns,
                    row=row,
                )
            except OSError as error:
                self._unopened(folder, name, error, old, row)
                return
        self._name(folder, name, file, old)
        if is_folder and row is not None:
            self._end_old_names(folder, name, file)
        self._seen.add(file)
        if task is not None:
            if is_linked and row is None:
                # So that the file's other names are recognised before it has been read.
                inode = make_inode(file, stat, fs=fs, birth_ns=birth_ns, xattrs=[])
                self._index.put_file(row_of(inode, size=-1, suspect=True, changed=0))
            self._readers.read(task)
            return
        self._special(folder, fd, entry, file=file, row=row, birth_ns=birth_ns)
        if is_folder:
            self._stack.append(self._walk.child(folder, entry, file, known=row is not None))

    def _identify(
        self, stat: os.stat_result, fs: int, birth_ns: int, old: Known | None
    ) -> tuple[int, FileRow | None]:
        """Return the file's id and, if the replica has it, what is known of it."""
        is_folder = stat_module.S_ISDIR(stat.st_mode)
        is_linked = stat.st_nlink > 1 and not is_folder
        ino = index_ino(stat.st_ino)
        if (
            old is not None
            and not is_linked
            and not (is_folder and old.file in self._seen)
            and (old.fs, old.ino, old.birth_ns) == (fs, ino, birth_ns)
            and same_type(old.mode, stat.st_mode)
        ):
            return old.file, self._index.file(old.file)
        if self._is_first and not is_linked:
            return self._index.new_id(), None
        ids = [
            row.id
            for row in self._index.with_inode(fs, ino)
            if row.birth_ns == birth_ns
            and same_type(row.mode, stat.st_mode)
            # A folder that shows twice is a bind mount: it has one name and one id at each place.
            and not (is_folder and row.id in self._seen)
        ]
        if not ids:
            return self._index.new_id(), None
        # A name that was made during an earlier walk may have got an id of its own: from now on
        # all names of a file lead to the same one. To the later one: it has all names but that
        # which the walk had met before, and only that name is sure to be looked up again.
        file = max(ids) if is_linked else ids[0]
        return file, self._index.file(file)

    def _special(
        self,
        folder: Folder,
        fd: int,
        entry: Listed,
        *,
        file: int,
        row: FileRow | None,
        birth_ns: int,
    ) -> None:
        """Keep what has no content: folders, links, pipes, sockets, devices."""
        name, stat = entry
        path = folder.path + b"/" + name
        clock_ns = linux.file_clock_ns()
        target = b""
        if stat_module.S_ISLNK(stat.st_mode):
            try:
                target = os.readlink(name, dir_fd=fd)
            except OSError as error:
                self._unreadable(path, error, has_older=row is not None)
                if row is None:
                    self._out.put(*(GoneName(*gone) for gone in self._index.retract(file)))
                return
        xattrs, problems = read_xattrs(through(fd, name))
        inode = make_inode(
            file,
            stat,
            fs=self._walk.fs_of[stat.st_dev],
            birth_ns=birth_ns,
            xattrs=xattrs,
            target=target,
        )
        suspect = may_change_unseen(stat, clock_ns)
        self._attributes(inode, row, stat.st_size, suspect=suspect)
        self._metadata_issues(path, problems)

    def _attributes(self, inode: Inode, row: FileRow | None, size: int, *, suspect: bool) -> None:
        new_row = row_of(inode, size=size, suspect=suspect, changed=row.changed if row else 0)
        if row is None or inode_differs(inode, row):
            self._out.put(inode)
        if new_row != row:
            self._index.put_file(new_row)

    def _name(self, folder: Folder, name: bytes, file: int, old: Known | None) -> None:
        if old is None or old.file != file:
            self._index.put_name(folder.file, name, file)
            self._out.put(Name(folder.file, name, file))

    def _end_old_names(self, folder: Folder, name: bytes, file: int) -> None:
        """A folder that was moved leaves its former place, even if that cannot be read now."""
        for former in self._index.names_of(file):
            if former != (folder.file, name):
                self._end_name(*former)

    def _end_name(self, parent: int, name: bytes) -> None:
        if not self._index.has_pending_name(parent, name):
            self._index.put_name(parent, name, None)
            self._out.put(GoneName(parent, name))

    def _gone(self, folder: Folder, gone: list[Known], but: set[bytes]) -> None:
        for old in gone:
            if old.name not in but:
                self._end_name(folder.file, old.name)

    def _unopened(
        self, folder: Folder, name: bytes, error: OSError, old: Known | None, row: FileRow | None
    ) -> None:
        path = folder.path + b"/" + name
        if error.errno in _VANISHED:
            self._issue(path, "vanished", "it was there a moment before")
            if old is not None:
                self._end_name(folder.file, name)
            return
        self._unreadable(path, error, has_older=row is not None)
        if row is not None:
            self._name(folder, name, row.id, old)
        elif old is not None:
            self._end_name(folder.file, name)

    def _no_root(self, path: bytes, error: OSError) -> SourceMissing:
        shown = (path or b"/").decode("utf-8", "replace")
        return SourceMissing(f"{shown}: {error.strerror}", hint="May the agent read it?")

    def _unreadable_folder(self, folder: Folder, error: OSError) -> None:
        path = folder.path or b"/"
        if folder.parent is None:
            raise self._no_root(path, error) from error
        if error.errno in _VANISHED and not folder.known:
            self._issue(path, "vanished", "it was there a moment before")
        else:
            self._unreadable(path, error, has_older=folder.known)

    def _unreadable(self, path: bytes, error: OSError, *, has_older: bool) -> None:
        text = error.strerror or str(error)
        if has_older:
            self._issue(path, "stale", f"{text}; its older state is kept")
        else:
            self._issue(path, "unreadable", text)

    def _metadata_issues(self, path: bytes, problems: list[str]) -> None:
        for text in problems:
            self._out.put(Issue(path, "metadata", text))

    def _issue(self, path: bytes, code: str, text: str) -> None:
        self.partial = True
        self._out.put(Issue(path, code, text))
