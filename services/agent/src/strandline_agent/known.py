"""What the agent knows of a data source: an index that mirrors one recovery point (SQLite).

The changes of a running job are *pending*: collected in tables of their own within a transaction,
made durable by `stage` before the store is asked to commit, and merged by `apply` only when the
store has said that the recovery point is durable. So the index is never ahead of the replica.

Digests of blocks are kept in pages of 1,024 blocks (4 MiB of a file, 16 KiB of the index). A page
that is missing is a hole. One that is empty was dropped to keep the index within its bound: the
store has to be asked.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from strandline_agent.changes import Known
from strandline_agent.errors import AgentError
from strandline_contracts.points import BLOCK_BYTES, BLOCK_DIGEST_BYTES, ROOT

PAGE_BLOCKS = 1024
UNKNOWN = b"\xff" * BLOCK_DIGEST_BYTES
"""Stands for a block of which nothing is known: like no digest that is found, nor a hole."""
CACHE_KIB = 32 * 1024
MAX_GATHERED_ROWS = 512
"""Changes are written so many at a time; a row of digests has up to 16 KiB."""
SCHEMA_VERSION = 1

_FILE = (
    "id INTEGER PRIMARY KEY, fs INTEGER, ino INTEGER, birth_ns INTEGER, mode INTEGER, uid INTEGER,"
    " gid INTEGER, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, attributes INTEGER,"
    " changed INTEGER, digests INTEGER"
)
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS file ({_FILE});
CREATE INDEX IF NOT EXISTS file_by_inode ON file (ino, fs);
CREATE TABLE IF NOT EXISTS name (parent INTEGER, name BLOB, file INTEGER,
    PRIMARY KEY (parent, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS name_by_file ON name (file);
CREATE TABLE IF NOT EXISTS digest (file INTEGER, page INTEGER, digests BLOB,
    PRIMARY KEY (file, page)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pending_file ({_FILE});
CREATE INDEX IF NOT EXISTS pending_file_by_inode ON pending_file (ino, fs);
CREATE TABLE IF NOT EXISTS pending_name (parent INTEGER, name BLOB, file INTEGER,
    PRIMARY KEY (parent, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS pending_name_by_file ON pending_name (file);
CREATE TABLE IF NOT EXISTS pending_digest (file INTEGER, page INTEGER, digests BLOB,
    PRIMARY KEY (file, page)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pending_gone (file INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS suspect (number INTEGER PRIMARY KEY, file INTEGER);
"""
_PENDING = ("pending_file", "pending_name", "pending_digest", "pending_gone", "suspect")
_LISTING = (
    "SELECT n.name, n.file, f.ino, f.size, f.mtime_ns, f.ctime_ns, f.mode, f.uid, f.gid, f.fs,"
    " f.birth_ns FROM name n JOIN file f ON f.id = n.file WHERE n.parent = ?"
)
_STILL_NAMED = """
SELECT EXISTS (SELECT 1 FROM pending_name WHERE file = :file) OR EXISTS (
    SELECT 1 FROM name n WHERE n.file = :file
    AND NOT EXISTS (SELECT 1 FROM pending_name p WHERE p.parent = n.parent AND p.name = n.name)
    AND NOT EXISTS (SELECT 1 FROM pending_gone g WHERE g.file = n.parent))
"""


_PUT_FILE = "INSERT OR REPLACE INTO pending_file VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)"
_PUT_NAME = "INSERT OR REPLACE INTO pending_name VALUES (?,?,?)"
_PUT_PAGE = "INSERT OR REPLACE INTO pending_digest VALUES (?,?,?)"
_PUTS = (_PUT_FILE, _PUT_NAME, _PUT_PAGE)


class IndexBroken(AgentError):
    """The index cannot be used; it is made anew from the store."""

    code = "agent.index_broken"


class FileRow(NamedTuple):
    """A file as the index keeps it: a row of `file`. `mode` is st_mode, with the type.

    `attributes` is a digest of all that an Inode tells but what other columns hold; `changed` the
    number of the recovery point that changed the content last; `digests` 0 when some were dropped.
    """

    id: int
    fs: int
    ino: int
    birth_ns: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ctime_ns: int
    attributes: int
    changed: int
    digests: int = 1


class Pending(NamedTuple):
    """The job whose changes wait to be merged."""

    job: str
    attempt: int


class KnownIndex:
    """The index of one data source. Safe for threads; every call may wait for the disk."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.RLock()
        self._conn = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        execute = self._conn.execute
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")
        execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        version = execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            self._conn.close()
            raise IndexBroken(f"the index {path} has version {version}")
        self._conn.executescript(_SCHEMA)
        execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._next = int(self._meta("next_file", ROOT + 1))
        self._gathered: dict[str, list[tuple[object, ...]]] = {put: [] for put in _PUTS}
        self._gathered_rows = 0

    def close(self) -> None:
        with self._lock:
            self._conn.close()

    # What recovery point it mirrors

    @property
    def mirrored(self) -> tuple[int, bytes]:
        """Number and digest of the recovery point that the index mirrors; (0, b"") for none."""
        with self._lock:
            return int(self._meta("point", 0)), bytes(self._meta("digest", b""))

    @property
    def pending(self) -> Pending | None:
        """The job whose changes were staged and not yet merged or discarded."""
        with self._lock:
            job = self._meta("job", "")
            return Pending(job, int(self._meta("attempt", 0))) if job else None

    @property
    def needs_check(self) -> bool:
        """Whether it was made anew from the store and no check was merged since.

        Such an index knows times that were never compared with what the files hold.
        """
        with self._lock:
            return bool(self._meta("needs_check", 0))

    def begin(self, point: int) -> None:
        """Begin to collect the changes that will make recovery point `point`."""
        with self._lock:
            self.abort()
            self._conn.execute("BEGIN IMMEDIATE")
            self._point = point

    def stage(self, job: str, attempt: int) -> None:
        """Make the collected changes durable, as those of `job`."""
        with self._lock:
            self._write_gathered()
            self._put_meta("job", job)
            self._put_meta("attempt", attempt)
            self._put_meta("next_file", self._next)
            self._conn.execute("COMMIT")

    def abort(self) -> None:
        """Forget the changes that are collected or staged, if any."""
        with self._lock:
            self._drop_gathered()
            if self._conn.in_transaction:
                self._conn.execute("ROLLBACK")
            if self._meta("job", ""):
                self._conn.execute("BEGIN IMMEDIATE")
                self._forget_pending()
                self._conn.execute("COMMIT")

    def apply(self, point: int, digest: bytes) -> None:
        """Merge the staged changes: the index mirrors recovery point `point` from now on."""
        with self._lock:
            execute = self._conn.execute
            execute("BEGIN IMMEDIATE")
            execute("DELETE FROM name WHERE parent IN (SELECT file FROM pending_gone)")
            execute(
                "DELETE FROM name WHERE (parent, name) IN"
                " (SELECT parent, name FROM pending_name WHERE file IS NULL)"
            )
            execute("INSERT OR REPLACE INTO name SELECT * FROM pending_name WHERE file NOT NULL")
            execute("INSERT OR REPLACE INTO file SELECT * FROM pending_file")
            execute(
                "INSERT OR REPLACE INTO digest SELECT * FROM pending_digest WHERE digests NOT NULL"
            )
            execute(
                "DELETE FROM digest WHERE (file, page) IN"
                " (SELECT file, page FROM pending_digest WHERE digests IS NULL)"
            )
            execute(
                "DELETE FROM digest WHERE file IN (SELECT id FROM pending_file) AND page >="
                " (SELECT (size + :page - 1) / :page FROM pending_file WHERE id = file)",
                {"page": PAGE_BLOCKS * BLOCK_BYTES},
            )
            execute("DELETE FROM file WHERE id IN (SELECT file FROM pending_gone)")
            execute("DELETE FROM digest WHERE file IN (SELECT file FROM pending_gone)")
            self._forget_pending()
            self._put_meta("point", point)
            self._put_meta("digest", digest)
            execute("DELETE FROM meta WHERE key = 'needs_check'")
            execute("COMMIT")

    def clear(self) -> None:
        """Forget everything, but give no id again: new ids begin at 2^20 for each second so far."""
        with self._lock:
            self.abort()
            self._conn.execute("BEGIN IMMEDIATE")
            for table in ("file", "name", "digest", "meta"):
                self._conn.execute(f"DELETE FROM {table}")  # noqa: S608 - names of our own tables
            self._next = max(int(time.time()) << 20, self._next)
            self._put_meta("next_file", self._next)
            self._conn.execute("COMMIT")

    # Reading

    def folder(self, parent: int) -> list[Known]:
        """Return the known entries of a folder."""
        with self._lock:
            # Plain tuples in the order of Known: they are read by position, by the 100,000.
            return self._conn.execute(_LISTING, (parent,)).fetchall()

    def file(self, file: int) -> FileRow | None:
        """Return the row of a file as of the recovery point that the index mirrors."""
        with self._lock:
            row = self._conn.execute("SELECT * FROM file WHERE id = ?", (file,)).fetchone()
        return FileRow(*row) if row else None

    def with_inode(self, fs: int, ino: int) -> list[FileRow]:
        """Return the files, pending ones first, that have or had this inode number."""
        with self._lock:
            self._write_gathered()
            execute = self._conn.execute
            rows = execute(
                "SELECT * FROM pending_file WHERE ino = ? AND fs = ?", (ino, fs)
            ).fetchall()
            rows += execute("SELECT * FROM file WHERE ino = ? AND fs = ?", (ino, fs)).fetchall()
        return [FileRow(*row) for row in rows]

    def names_of(self, file: int) -> list[tuple[int, bytes]]:
        """Return the names (parent, name) of a file as of the mirrored recovery point."""
        with self._lock:
            return self._conn.execute(
                "SELECT parent, name FROM name WHERE file = ?", (file,)
            ).fetchall()

    def page(self, file: int, page: int) -> bytes | None:
        """Return the digests of a page, pending ones first; empty for a hole, None if dropped."""
        with self._lock:
            self._write_gathered()
            execute = self._conn.execute
            row = execute(
                "SELECT digests FROM pending_digest WHERE file = ? AND page = ?", (file, page)
            ).fetchone()
            if row:
                return row[0] or b""
            row = execute(
                "SELECT digests FROM digest WHERE file = ? AND page = ?", (file, page)
            ).fetchone()
        return (row[0] or None) if row else b""

    def pages(self, file: int, first: int, end: int) -> list[int]:
        """Return which pages of a file from `first` to before `end` are not wholly holes."""
        with self._lock:
            self._write_gathered()
            rows = self._conn.execute(
                "SELECT page FROM digest WHERE file = :file AND page >= :first AND page < :end"
                " UNION SELECT page FROM pending_digest"
                " WHERE file = :file AND page >= :first AND page < :end ORDER BY page",
                {"file": file, "first": first, "end": end},
            ).fetchall()
        return [row[0] for row in rows]

    # Collecting changes

    def new_id(self) -> int:
        """Return a file id that was never used in this source."""
        with self._lock:
            self._next += 1
            return self._next - 1

    def put_file(self, row: FileRow, *, content_changed: bool = False) -> None:
        self._gather(_PUT_FILE, row._replace(changed=self._point) if content_changed else row)

    def put_name(self, parent: int, name: bytes, file: int | None) -> None:
        """Let a name lead to `file`, or to nothing."""
        self._gather(_PUT_NAME, (parent, name, file))

    def has_pending_name(self, parent: int, name: bytes) -> bool:
        with self._lock:
            self._write_gathered()
            return bool(
                self._conn.execute(
                    "SELECT 1 FROM pending_name WHERE parent = ? AND name = ?", (parent, name)
                ).fetchone()
            )

    def put_page(self, file: int, page: int, digests: bytes) -> None:
        """Set the digests of a page; empty for a hole."""
        self._gather(_PUT_PAGE, (file, page, digests or None))

    def _gather(self, put: str, row: tuple[object, ...]) -> None:
        """Keep a change until there are many, or until somebody reads such rows."""
        with self._lock:
            self._gathered[put].append(row)
            self._gathered_rows += 1
            if self._gathered_rows >= MAX_GATHERED_ROWS:
                self._write_gathered()

    def _write_gathered(self) -> None:
        if self._gathered_rows:
            for put, rows in self._gathered.items():
                self._conn.executemany(put, rows)
            self._drop_gathered()

    def _drop_gathered(self) -> None:
        for rows in self._gathered.values():
            rows.clear()
        self._gathered_rows = 0

    def retract(self, file: int) -> list[tuple[int, bytes]]:
        """Take a new file out again; returns the names that had been given to it."""
        with self._lock:
            self._write_gathered()
            execute = self._conn.execute
            names = execute(
                "SELECT parent, name FROM pending_name WHERE file = ?", (file,)
            ).fetchall()
            execute("UPDATE pending_name SET file = NULL WHERE file = ?", (file,))
            execute("DELETE FROM pending_file WHERE id = ?", (file,))
            execute("DELETE FROM pending_digest WHERE file = ?", (file,))
        return names

    def find_gone(self) -> Iterator[int]:
        """Find the files that have lost their last name, those in gone folders included."""
        with self._lock:
            self._write_gathered()
            execute = self._conn.execute
            execute(
                "INSERT INTO suspect (file) SELECT DISTINCT n.file FROM name n JOIN pending_name p"
                " ON p.parent = n.parent AND p.name = n.name WHERE p.file IS NOT n.file"
            )
            done = 0
            while row := execute(
                "SELECT number, file FROM suspect WHERE number > ? ORDER BY number LIMIT 1", (done,)
            ).fetchone():
                done, file = row
                if execute(_STILL_NAMED, {"file": file}).fetchone()[0]:
                    continue
                if not execute("INSERT OR IGNORE INTO pending_gone VALUES (?)", (file,)).rowcount:
                    continue
                execute(
                    "INSERT INTO suspect (file) SELECT file FROM name WHERE parent = ?", (file,)
                )
                execute("DELETE FROM pending_file WHERE id = ?", (file,))
                yield file

    def totals(self) -> tuple[int, int]:
        """Return how many files the tree has with the changes, and the bytes of regular ones."""
        regular = "CASE WHEN mode & 61440 = 32768 THEN size ELSE 0 END"
        with self._lock:
            self._write_gathered()
            files, size = self._conn.execute(
                f"SELECT COUNT(*), COALESCE(SUM({regular}), 0) FROM ("  # noqa: S608
                "SELECT mode, size FROM pending_file UNION ALL SELECT mode, size FROM file"
                " WHERE id NOT IN (SELECT id FROM pending_file)"
                " AND id NOT IN (SELECT file FROM pending_gone))"
            ).fetchone()
        return int(files), int(size)

    # Rebuilding and bounding

    def fill(self, files: Iterable[FileRow], names: Iterable[tuple[int, bytes, int]]) -> None:
        """Add files and names of the mirrored recovery point, when the index is made anew."""
        with self._lock:
            self._conn.execute("BEGIN IMMEDIATE")
            self._conn.executemany(
                "INSERT OR REPLACE INTO file VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)", files
            )
            self._conn.executemany("INSERT OR REPLACE INTO name VALUES (?,?,?)", names)
            self._conn.execute("COMMIT")

    def fill_pages(self, pages: Iterable[tuple[int, int, bytes]]) -> None:
        """Add pages of digests, when the index is made anew."""
        with self._lock:
            self._conn.execute("BEGIN IMMEDIATE")
            self._conn.executemany("INSERT OR REPLACE INTO digest VALUES (?,?,?)", pages)
            self._conn.execute("COMMIT")

    def regular_files(self, after: int, limit: int) -> list[FileRow]:
        """Return regular files with content, with ids above `after`, rising."""
        with self._lock:
            rows = self._conn.execute(
                "SELECT * FROM file WHERE id > ? AND mode & 61440 = 32768 AND size > 0"
                " ORDER BY id LIMIT ?",
                (after, limit),
            ).fetchall()
        return [FileRow(*row) for row in rows]

    def drop_digests(self, file: int) -> None:
        """Forget the digests of a file: the store has to be asked when it changes."""
        with self._lock:
            self._conn.execute("BEGIN IMMEDIATE")
            self._conn.execute("UPDATE file SET digests = 0 WHERE id = ?", (file,))
            self._conn.execute("UPDATE digest SET digests = zeroblob(0) WHERE file = ?", (file,))
            self._conn.execute("COMMIT")

    def doubt(self, pages: Iterable[tuple[int, int]]) -> None:
        """Have the files of these pages (file, page) read by the next job.

        The digests of the pages are forgotten: the store has to be asked what it can still read.
        """
        with self._lock:
            self._conn.execute("BEGIN IMMEDIATE")
            for file, page in pages:
                self._conn.execute("UPDATE file SET ctime_ns = 0 WHERE id = ?", (file,))
                self._conn.execute(
                    "UPDATE digest SET digests = zeroblob(0) WHERE file = ? AND page = ?",
                    (file, page),
                )
            self._conn.execute("COMMIT")

    def set_mirrored(self, point: int, digest: bytes) -> None:
        """Tell which recovery point a freshly filled index mirrors; the next job is to check it."""
        with self._lock:
            self._conn.execute("BEGIN IMMEDIATE")
            self._put_meta("point", point)
            self._put_meta("digest", digest)
            self._put_meta("needs_check", 1)
            self._pass_filled_ids()
            self._conn.execute("COMMIT")

    def _pass_filled_ids(self) -> None:
        """Give no id again that was filled in: the clock may stand where it stood once before."""
        last = self._conn.execute("SELECT MAX(id) FROM file").fetchone()[0] or ROOT
        self._next = max(self._next, last + 1)
        self._put_meta("next_file", self._next)

    def used_bytes(self) -> int:
        """Return the bytes of the index that are in use."""
        with self._lock:
            pages, free, size = (
                self._conn.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
        return int((pages - free) * size)

    def shrink(self, max_bytes: int) -> int:
        """Drop digests of large files that have not changed for long until the index fits.

        Returns how many files lost theirs.
        """
        dropped = 0
        point = self.mirrored[0]
        while self.used_bytes() > max_bytes:
            with self._lock:
                rows = self._conn.execute(
                    "SELECT id FROM file WHERE digests = 1 AND mode & 61440 = 32768 AND size > 0"
                    " ORDER BY size * (1.0 + ? - changed) DESC LIMIT 100",
                    (point,),
                ).fetchall()
            for (file,) in rows:
                self.drop_digests(file)
                dropped += 1
                if self.used_bytes() <= max_bytes:
                    break
            if not rows:
                break
        return dropped

    # Inside

    def _meta(self, key: str, default: Any) -> Any:
        row = self._conn.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else default

    def _put_meta(self, key: str, value: object) -> None:
        self._conn.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _forget_pending(self) -> None:
        for table in _PENDING:
            self._conn.execute(f"DELETE FROM {table}")  # noqa: S608 - names of our own tables
        self._conn.execute("DELETE FROM meta WHERE key IN ('job', 'attempt')")
