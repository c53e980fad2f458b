"""Everything that the store refuses or fails with; codes are stable, for scripts."""

from __future__ import annotations

import errno
import sqlite3

from strandline_contracts.errors import StrandlineError

_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# Plain, and as SQLite reports a quota or limit on its log (IOERR_WRITE) and its shared memory.
_SQLITE_FULL = frozenset({13, 778, 4874})


class StoreError(StrandlineError):
    """The root of the store's errors."""

    code = "store.error"


class BadChunk(StoreError):
    """A shipped chunk that is not what its digest, codec or length says."""

    code = "store.bad_chunk"
    hint = "The data was damaged on its way, or agent and store differ in version. Try again."
    retryable = True


class MissingChunk(StoreError):
    """A batch names a chunk that this replica does not hold."""

    code = "store.missing_chunk"
    hint = "The agent tries again and ships the data."
    retryable = True


class BadDelta(StoreError):
    """A batch or an end that contradicts itself or what came before it."""

    code = "store.bad_delta"
    hint = "The agent tries again from the start of the job."
    retryable = True


class Fenced(StoreError):
    """A newer attempt, or another job, has taken the place of this one."""

    code = "store.fenced"
    hint = "Nothing to do: the newer attempt goes on."


class UnknownJob(StoreError):
    """No such job is open here."""

    code = "store.unknown_job"
    hint = "Open the job again with a higher attempt."
    retryable = True


class Aborted(StoreError):
    """The agent gave the job up."""

    code = "store.aborted"


class ParentMoved(StoreError):
    """The newest recovery point is no longer the one on which the job builds."""

    code = "store.mismatch"
    hint = "The agent opens the job again on the newest recovery point."
    retryable = True


class Inconsistent(StoreError):
    """The replica takes no express full until a consistency check has repaired it."""

    code = "store.inconsistent"
    hint = "Run `strandline check NAME`; older recovery points can be restored meanwhile."


class Full(StoreError):
    """The disk under the store is (nearly) full."""

    code = "store.full"
    hint = "Free space on the store's disk or add to it, then run the job again."


class DiskError(StoreError):
    """The disk or the index failed in another way than by being full."""

    code = "store.io"
    hint = "See the store's log and the kernel's for errors of the disk."
    retryable = True


class Busy(StoreError):
    """The store has as much in hand as its limits allow."""

    code = "store.busy"
    hint = "Try again in a moment."
    retryable = True


class Behind(StoreError):
    """The index could not be brought up to the manifests; tried again at the next request."""

    code = "store.index_behind"
    hint = "See the store's log; most often its disk is full."
    retryable = True


class Damaged(StoreError):
    """Bytes in the store do not match their digest."""

    code = "store.damaged"
    hint = "Run `strandline verify NAME` to see all, then `strandline check NAME` to repair."


class NoSuch(StoreError):
    """A source, recovery point, file or chunk that is not here."""

    code = "store.no_such"
    hint = "List what there is with `strandline points NAME`."


class TooMuch(StoreError):
    """A request that asks for more than one answer may hold."""

    code = "store.too_much"
    hint = "Ask for less at once."


class NotAllowed(StoreError):
    """The caller may not do this."""

    code = "store.not_allowed"
    hint = "Grants are given by `strandline restore`; who protects a source: `strandline status`."


class Locked(StoreError):
    """Another process owns the store's root."""

    code = "store.locked"
    hint = "Stop the other store process, or give this one another folder."


def as_full(error: OSError | sqlite3.Error) -> Full | None:
    """Return Full if `error` says that there is no room to write, else None."""
    if isinstance(error, OSError):
        return Full(f"no room: {error.strerror}") if error.errno in _FULL_ERRNOS else None
    if getattr(error, "sqlite_errorcode", 0) in _SQLITE_FULL:
        return Full(f"no room for the index: {error}")
    return None
