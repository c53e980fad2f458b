"""Leases: who reads what, so that nothing is taken away under a reader.

Every read of a recovery point, and every walk over segments, takes or renews one. They are kept in
memory: after a start of the store everything counts as leased until each reader that was there
before has either come back or given up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

LEASE_S = 600.0
"""A lease ends so long after it was last taken, unless a store is told otherwise."""
MAX_LEASES = 4096
SEGMENTS = 0
"""The recovery point to name when it is the segments that are read, not one recovery point."""
OTHERS = "*"
"""The holder of leases that are too many to be told apart."""
ANY_POINT = -1
"""The recovery point of such leases."""


class _Key(NamedTuple):
    source: str
    point: int
    holder: str


class _Lease(NamedTuple):
    taken_at_ns: int
    renewed_at_ns: int


class Leases:
    """Who reads what; may be called from any thread. Times are nanoseconds of `now_ns`."""

    def __init__(
        self, now_ns: Callable[[], int] = time.monotonic_ns, *, lease_s: float = LEASE_S
    ) -> None:
        self._now_ns = now_ns
        self._lease_ns = int(lease_s * 1e9)
        self._started_at_ns = now_ns()
        self._lock = threading.Lock()
        self._leases: dict[_Key, _Lease] = {}
        """Longest not renewed first."""

    def now_ns(self) -> int:
        """Return the time by the clock of the leases."""
        return self._now_ns()

    def take(self, source: str, point: int, holder: str) -> None:
        """Take or renew the lease of `holder` on a recovery point, or on SEGMENTS."""
        now_ns = self._now_ns()
        with self._lock:
            self._forget_ended(now_ns)
            self._put(_Key(source, point, holder), self._first_taken(now_ns), now_ns)
            # The first of a source only changes its name, the second makes one fewer.
            for _ in range(2):
                if len(self._leases) > MAX_LEASES:
                    self._join_oldest()

    def _put(self, key: _Key, taken_at_ns: int, renewed_at_ns: int) -> None:
        known = self._leases.pop(key, None)
        if known is not None:
            taken_at_ns = min(taken_at_ns, known.taken_at_ns)
        self._leases[key] = _Lease(taken_at_ns, renewed_at_ns)

    def _first_taken(self, now_ns: int) -> int:
        """Who comes in the time of grace may have read before the start: its lease has no start."""
        return 0 if self._in_grace(now_ns) else now_ns

    def _in_grace(self, now_ns: int) -> bool:
        return now_ns < self._started_at_ns + self._lease_ns

    def _forget_ended(self, now_ns: int) -> None:
        while self._leases:
            key, lease = next(iter(self._leases.items()))
            if lease.renewed_at_ns + self._lease_ns > now_ns:
                return
            del self._leases[key]

    def _join_oldest(self) -> None:
        """Join the lease that was renewed longest ago with others of its source, of any point."""
        key = next((key for key in self._leases if key.point != ANY_POINT), None)
        if key is not None:
            lease = self._leases.pop(key)
            joined = _Key(key.source, ANY_POINT, OTHERS)
            known = self._leases.get(joined, lease)
            self._put(joined, lease.taken_at_ns, max(known.renewed_at_ns, lease.renewed_at_ns))

    def release(self, source: str, point: int, holder: str) -> None:
        """End a lease before its time: its holder has nothing in hand any more."""
        with self._lock:
            self._leases.pop(_Key(source, point, holder), None)

    def leased_points(self, source: str) -> set[int] | None:
        """Return the recovery points of `source` that are being read; None: any may be."""
        now_ns = self._now_ns()
        with self._lock:
            if self._in_grace(now_ns):
                return None
            self._forget_ended(now_ns)
            mine = {key.point for key in self._leases if key.source == source}
            return None if ANY_POINT in mine else mine - {SEGMENTS}

    def oldest_taken_at(self, source: str) -> int | None:
        """Return when the oldest lease on anything of `source` was first taken; None: no lease.

        0 in the time of grace after a start, and for leases first taken in it.
        """
        now_ns = self._now_ns()
        with self._lock:
            if self._in_grace(now_ns):
                return 0
            self._forget_ended(now_ns)
            return min(
                (lease.taken_at_ns for key, lease in self._leases.items() if key.source == source),
                default=None,
            )

    def ended_since(self, source: str, at_ns: int) -> bool:
        """Tell whether every lease has ended that was taken up to `at_ns`.

        A moment that lies ahead is one of before the host was started: it counts as this start.
        """
        oldest_ns = self.oldest_taken_at(source)
        if at_ns > self._now_ns():
            at_ns = self._started_at_ns
        return oldest_ns is None or oldest_ns > at_ns
