"""What is to become of recovery points: which of them are held, which are deleted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from strandline_console.documents import time_document
from strandline_console.text import time_text
from strandline_contracts.queries import SourceState
from strandline_contracts.reading import ReplicaState

ALL = 0
"""Stands for all recovery points: of a hold, also for those that come; of a delete, the replica."""


@dataclass(frozen=True)
class Fate:
    """The fate of one source's recovery points: numbers that are held, that are deleted.

    What is deleted goes at `due_at_ns`. `damaged_chunks` is None where nobody knows.
    """

    held: Sequence[int] = ()
    deleted: Sequence[int] = ()
    due_at_ns: int = 0
    damaged_chunks: int | None = None
    inconsistent: str = ""

    @classmethod
    def of_replica(cls, held: Sequence[int], replica: ReplicaState | None) -> Fate:
        """Return the fate that a store tells; None: it does not answer, or has no replica."""
        if replica is None:
            return cls(held)
        return cls(
            held,
            replica.deleted,
            replica.due_at_ns,
            replica.damaged_chunks,
            replica.inconsistent,
        )

    @classmethod
    def of_state(cls, held: Sequence[int], state: SourceState) -> Fate:
        """Return the fate that the catalog tells."""
        return cls(held, state.deleted, state.due_at_ns, state.damaged_chunks)

    def is_held(self, number: int) -> bool:
        return number in self.held or ALL in self.held

    def deleted_until_ns(self, number: int) -> int:
        """Return until when a deleted point can be taken back, 0 for one that is not deleted."""
        return self.due_at_ns if number in self.deleted or ALL in self.deleted else 0

    def words(self, number: int) -> list[str]:
        """Return what a person should know of a recovery point."""
        until_ns = self.deleted_until_ns(number)
        deleted = [f"deleted, gone after {time_text(until_ns)}"] if until_ns else []
        return deleted + (["held"] if self.is_held(number) else [])

    def document(self, number: int) -> dict[str, Any]:
        return {
            "held": self.is_held(number),
            "deleted_until": time_document(self.deleted_until_ns(number)),
        }

    def remarks(self) -> list[str]:
        """Return what is not as it should be, what will not last, and what is held."""
        found = []
        if self.damaged_chunks:
            found.append(_counted(self.damaged_chunks, "damaged chunk"))
        if self.inconsistent:
            found.append(f"inconsistent: {self.inconsistent}")
        if self.deleted:
            what = (
                "deleted"
                if ALL in self.deleted
                else f"{_counted(len(self.deleted), 'recovery point')} deleted"
            )
            found.append(f"{what}, gone after {time_text(self.due_at_ns)}")
        if self.held:
            found.append(
                "all held"
                if ALL in self.held
                else f"{_counted(len(self.held), 'recovery point')} held"
            )
        return found

    def deleted_document(self) -> dict[str, Any]:
        return {
            "deleted": [number for number in self.deleted if number != ALL],
            "replica_deleted": ALL in self.deleted,
            "undelete_until": time_document(self.due_at_ns) if self.deleted else None,
        }


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
