"""Names that somebody may have meant. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_NAMES = 3


def nearest(asked: str, names: Iterable[str]) -> list[str]:
    """Return up to three of `names` that are most like `asked`, the best first."""
    by_folded: dict[str, str] = {}
    for name in names:
        by_folded.setdefault(name.casefold(), name)
    folded = asked.casefold()
    found = [name for name in by_folded if folded and (folded in name or name in folded)]
    found += difflib.get_close_matches(folded, list(by_folded), n=MAX_NAMES, cutoff=0.5)
    best = sorted(
        dict.fromkeys(found),
        key=lambda name: difflib.SequenceMatcher(None, folded, name).ratio(),
        reverse=True,
    )
    return [by_folded[name] for name in best[:MAX_NAMES]]
