"""What an operator has deleted: taken back at will until the store's own delay has passed.

The changes are pure; `deleted.json` in the replica's folder keeps them (docs/formats/replica.md).
An agent has no way here.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

import msgspec

from strandline_replica_store.errors import Busy, Damaged, Deleted, Held, translated
from strandline_replica_store.files import checked_json

WHOLE = 0
"""Stands for the whole replica among the numbers of recovery points."""


class Deletion(msgspec.Struct, frozen=True, kw_only=True):
    """One delete. Times are Unix nanoseconds of the store's clock."""

    deleted_at_ns: int
    due_at_ns: int
    job: str
    by: str


Deletions = Mapping[int, Deletion]
"""By number of recovery point; WHOLE for the replica."""


def with_deleted(
    current: Deletions, points: Collection[int], deletion: Deletion
) -> dict[int, Deletion]:
    """Return what is deleted once `points` (none: the whole replica) are; what was deleted
    before stays due when it was."""
    named = sorted(points) or [WHOLE]
    return {**dict.fromkeys(named, deletion), **current}


def with_restored(current: Deletions, points: Collection[int]) -> dict[int, Deletion]:
    """Return what is deleted once `points` are taken back (none: all, and the replica).

    To take back a point of a replica that is deleted as a whole takes back the replica.
    """
    if not points:
        return {}
    gone = {*points, WHOLE}
    return {number: deletion for number, deletion in current.items() if number not in gone}


def check_not_held(points: Collection[int], held: Collection[int]) -> None:
    """Raise Held if a hold keeps any of `points` (none: the whole replica)."""
    stopped = sorted(set(points) & set(held)) if points else sorted(held)
    if WHOLE in held or stopped:
        what = "all of it" if WHOLE in held else f"recovery points {stopped}"
        raise Held(f"a hold keeps {what}")


def due(current: Deletions, now_ns: int) -> set[int]:
    """Return the numbers whose delete takes effect at `now_ns`."""
    return {number for number, deletion in current.items() if deletion.due_at_ns <= now_ns}


class _File(msgspec.Struct, frozen=True, kw_only=True):
    format: int = 1
    points: dict[str, Deletion] = {}


class DeletedDamaged(Damaged):
    """A deleted.json whose bytes are not those that were written."""

    hint = "Nothing is dropped meanwhile; `strandline undelete NAME` takes back every delete."


class DeletedFiles:
    """The deleted.json of all replicas of a store, by their folders' place.

    Methods block and may be called from any thread. `lock` is held while something is decided
    that a change must not cross. What is remembered is bounded by the replicas that there are.
    """

    def __init__(self, folder_of: Callable[[str], str]) -> None:
        self._folder_of = folder_of
        self._known: dict[str, dict[int, Deletion]] = {}
        self._settling: Counter[str] = Counter()
        """How many carry out deletes of a source: housekeeping, and a person's command."""
        self.lock = threading.RLock()

    def of(self, source: str) -> dict[int, Deletion]:
        """Return what is deleted of a source's replica. Raises DeletedDamaged, OSError."""
        known = self._known.get(source)
        if known is not None:
            # Without the lock: each batch that is received asks this.
            return dict(known)
        with self.lock:
            known = self._known.get(source)
            if known is None:
                known = self._read(source)
                if os.path.isdir(self._folder_of(source)):
                    self._known[source] = known
            return dict(known)

    def _read(self, source: str) -> dict[int, Deletion]:
        try:
            found = checked_json.read(self._path(source), _File)
            return {int(n): each for n, each in found.points.items()} if found else {}
        except (Damaged, ValueError) as error:
            raise DeletedDamaged(str(error)) from error

    def put(self, source: str, deletions: Deletions) -> None:
        """Keep what is deleted, for good, before it counts. Raises OSError."""
        points = {str(number): deletions[number] for number in sorted(deletions)}
        with self.lock:
            self._known.pop(source, None)
            checked_json.write(self._path(source), _File(points=points))
            self._known[source] = dict(deletions)

    def forget(self, source: str) -> None:
        """Forget a replica that is here no more."""
        with self.lock:
            self._known.pop(source, None)

    @contextmanager
    def settling(self, source: str, numbers: Collection[int]) -> Iterator[bool]:
        """Give whether `numbers` are deleted still; meanwhile nothing of it is taken back."""
        with self.lock:
            stands = set(numbers) <= self.of(source).keys()
            self._settling[source] += 1
        try:
            yield stands
        finally:
            with self.lock:
                self._settling[source] -= 1
                if not self._settling[source]:
                    del self._settling[source]

    def check_settled(self, source: str) -> None:
        """Raise Busy while deletes of this source that are due are being carried out."""
        if source in self._settling:
            raise Busy(f"deletes of source {source} are being carried out")

    def check_stands(self, source: str) -> None:
        """Raise Deleted if the whole replica is deleted. Raises DiskError.

        A deleted.json that is damaged deletes nothing: protection goes on.
        """
        try:
            with translated():
                whole = self.of(source).get(WHOLE)
        except Damaged:
            return
        if whole is not None:
            raise Deleted(f"the replica of source {source} was deleted by {whole.by}")

    def _path(self, source: str) -> str:
        return os.path.join(self._folder_of(source), "deleted.json")
