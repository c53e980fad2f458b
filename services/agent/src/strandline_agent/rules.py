"""Which paths of a data source are left out: gitignore lines. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import pathspec

from strandline_agent.errors import AgentError
from strandline_contracts.errors import StrandlineError


class BadExclude(AgentError):
    """An exclude line that is no gitignore pattern."""

    code = "agent.bad_exclude"
    hint = "Excludes are lines as in .gitignore: strandline protect --exclude '*.tmp'."


class Excludes:
    """The exclude lines of a data source; the last line that matches decides.

    As with git, what lies in a folder that is left out cannot be brought back by a `!` line.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        self._spec: pathspec.GitIgnoreSpec | None = None
        if lines:
            try:
                self._spec = pathspec.GitIgnoreSpec.from_lines(lines)
            except (ValueError, TypeError) as error:
                raise BadExclude(f"excludes: {error}") from error

    def __bool__(self) -> bool:
        return self._spec is not None

    def leaves_out(self, path: bytes, *, is_folder: bool) -> bool:
        """Tell whether `path` (relative to the protected path, without a leading slash) is out."""
        if self._spec is None:
            return False
        text = path.decode("utf-8", "surrogateescape")
        return bool(self._spec.match_file(text + "/" if is_folder else text))


def outermost(paths: Sequence[bytes]) -> list[bytes]:
    """Return `paths` without those that lie in another one of them, sorted.

    Raises StrandlineError for a path that is not absolute or goes through `..`.
    """
    kept: list[bytes] = []
    for path in sorted({_clean(path) for path in paths}, key=lambda clean: clean.split(b"/")):
        if not kept or not (path + b"/").startswith(kept[-1].rstrip(b"/") + b"/"):
            kept.append(path)
    return kept


def _clean(path: bytes) -> bytes:
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if not path.startswith(b"/") or b".." in parts or b"\0" in path:
        raise StrandlineError(f"not an absolute path: {path!r}", code="agent.bad_path")
    return b"/" + b"/".join(parts)
