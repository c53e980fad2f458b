"""What a reader may see: all of a recovery point, or what lies below the paths of its grant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice

import apsw

from strandline_replica_store.errors import NotAllowed
from strandline_replica_store.replica import tree

KEPT_VERDICTS = 10_000
NAMES_CLIMBED = 250_000
"""So many names, from a file up to the root, are looked at to find a path that the grant allows:
a file may have very many hard links, each with folders of its own above it."""
FILES_LOOKED_AT = 10_000
"""So many files that share a chunk are looked at to find one that the grant allows."""


class Scope:
    """The files of one recovery point that a grant allows; of one thread at a time.

    `paths` empty means all of them. Folders above a granted path may be listed, but show only the
    names that lead there.
    """

    def __init__(self, conn: apsw.Connection, point: int, paths: Sequence[bytes]) -> None:
        self.whole = not paths
        self._point = point
        self._roots: set[int] = set()
        self._above: dict[int, set[bytes]] = {}
        self._verdicts: dict[int, bool] = {}
        for path in paths:
            found = tree.resolve(conn, point, path)
            if found is None:
                continue
            steps, file = found
            self._roots.add(file)
            for folder, name in steps:
                self._above.setdefault(folder, set()).add(name)

    def check_file(self, conn: apsw.Connection, file: int) -> None:
        """Raise NotAllowed unless `file` lies at or below a granted path."""
        if not self.whole and not self._allows(conn, file):
            raise NotAllowed(f"the grant does not cover file {file}")

    def check_seen(self, conn: apsw.Connection, file: int) -> None:
        """As `check_file`, but folders above a granted path may be seen, too."""
        if file not in self._above:
            self.check_file(conn, file)

    def names_in(self, conn: apsw.Connection, folder: int) -> set[bytes] | None:
        """Return the names of `folder` that may be seen, None for all; raise NotAllowed."""
        if self.whole or self._allows(conn, folder):
            return None
        if folder in self._above:
            return self._above[folder]
        raise NotAllowed(f"the grant does not cover folder {folder}")

    def check_chunks(self, conn: apsw.Connection, chunks: Sequence[int]) -> None:
        """Raise NotAllowed unless a file that may be read has bytes in each of `chunks`."""
        if self.whole:
            allowed = tree.chunks_of_point(conn, self._point, chunks)
        else:
            allowed = {chunk for chunk in chunks if self._allows_chunk(conn, chunk)}
        for chunk in chunks:
            if chunk not in allowed:
                raise NotAllowed(f"chunk {chunk} is not part of what may be read")

    def _allows_chunk(self, conn: apsw.Connection, chunk: int) -> bool:
        files = chain(
            tree.files_of_chunk(conn, self._point, chunk),
            tree.former_files_of_chunk(conn, self._point, chunk),
        )
        return any(self._allows(conn, file) for file in islice(files, FILES_LOOKED_AT))

    def _allows(self, conn: apsw.Connection, file: int) -> bool:
        verdict = self._verdicts.get(file)
        if verdict is None:
            verdict = self._climb(conn, file)
            if len(self._verdicts) >= KEPT_VERDICTS:
                self._verdicts.clear()
            self._verdicts[file] = verdict
        return verdict

    def _climb(self, conn: apsw.Connection, file: int) -> bool:
        """Tell whether some way up from `file` (hard links have several) meets a granted path."""
        above = islice(self._upwards(conn, file), NAMES_CLIMBED)
        return any(each in self._roots for each in above)

    def _upwards(self, conn: apsw.Connection, file: int) -> Iterator[int]:
        """Yield `file`, and for each name on a way up from there the folder that it is in."""
        yield file
        seen, level = {file}, [file]
        while level:
            below, level = level, []
            for each in below:
                for parent, _ in tree.parents(conn, self._point, each):
                    yield parent
                    if parent not in seen:
                        seen.add(parent)
                        level.append(parent)
