"""Everything that the store refuses or fails with; codes are stable, for scripts."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import apsw

from strandline_contracts.errors import StrandlineError
from strandline_contracts.reading import NO_SUCH

_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# Plain, and as SQLite reports a quota or limit on its log (IOERR_WRITE) and its shared memory.
_SQLITE_FULL = frozenset({apsw.SQLITE_FULL, apsw.SQLITE_IOERR_WRITE, apsw.SQLITE_IOERR_SHMSIZE})
_SQLITE_DAMAGE = frozenset({apsw.SQLITE_CORRUPT, apsw.SQLITE_NOTADB})


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


class IndexDamaged(StoreError):
    """The index has bytes that do not match their check sums; it is being made anew."""

    code = "store.index_damaged"
    hint = "Try again: the index is made anew from the manifests, which takes a moment."
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

    code = NO_SUCH
    hint = "List what there is with `strandline points NAME`."


class TooMuch(StoreError):
    """A request that asks for more than one answer may hold."""

    code = "store.too_much"
    hint = "Ask for less at once."


class NotAllowed(StoreError):
    """The caller may not do this."""

    code = "store.not_allowed"
    hint = "Grants are given by `strandline restore`; who protects a source: `strandline status`."


class Deleted(StoreError):
    """The replica is deleted: nothing new comes in."""

    code = "store.deleted"
    hint = "Run `strandline undelete NAME` to have it back, as long as the store's delay lasts."


class Held(StoreError):
    """What is to be deleted is held."""

    code = "store.held"
    hint = "Run `strandline release NAME` first; see `strandline points NAME`."


class ClockDoubted(StoreError):
    """The store's clock is not to be believed: nothing that hangs on time is done."""

    code = "store.clock_doubted"
    hint = "Set the clock right, or on the store's machine: `strandline store clock --accept`."


class BadPolicy(StoreError):
    """A policy document that is missing or says what cannot be: nothing is forgotten by it."""

    code = "store.bad_policy"
    hint = "See `strandline retention`; set it again."


class Locked(StoreError):
    """Another process owns the store's root."""

    code = "store.locked"
    hint = "Stop the other store process, or give this one another folder."


def as_full(error: OSError | apsw.Error) -> Full | None:
    """Return Full if `error` says that there is no room to write, else None."""
    if isinstance(error, OSError):
        return Full(f"no room: {error.strerror}") if error.errno in _FULL_ERRNOS else None
    if _extended(error) in _SQLITE_FULL:
        return Full(f"no room for the index: {error}")
    return None


def means_damage(error: BaseException) -> bool:
    """Tell whether `error` says that the bytes of the index are not those that were written."""
    if not isinstance(error, apsw.Error):
        return False
    # The low byte of an extended code is the plain one.
    code = _extended(error)
    if isinstance(error, apsw.CorruptError):
        return True
    return code & 0xFF in _SQLITE_DAMAGE or code == apsw.SQLITE_IOERR_DATA


def _extended(error: apsw.Error) -> int:
    # Errors that apsw raises by itself have none.
    return getattr(error, "extendedresult", 0)


@contextmanager
def translated() -> Iterator[None]:
    """Turn the errors of disk and SQLite into the store's own."""
    try:
        yield
    except (OSError, apsw.Error) as error:
        if means_damage(error):
            raise IndexDamaged(f"the index: {error}") from error
        raise as_full(error) or DiskError(f"the store's disk: {error}") from error
