"""The permission table as a page: python -m strandline_runtime.permission_table [FILE]."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

from strandline_contracts.names import Role
from strandline_contracts.permissions import permissions

_HEAD = """\
# Who may say what on the bus

Generated from `strandline_contracts.permissions` by `python -m strandline_runtime.permission_table
docs/permissions.md`; a test compares. The bus's own configuration is generated from the same rows,
and `tests/contract/test_permissions.py` tries every pair that is not here. Each credential is one
role and one instance, below `INSTANCE`, at the site `SITE`. What is not listed is denied.

*Answers*: may publish once to the reply subject of each message that it received, within two
minutes. Services answer only inside the caller's own inbox, `_INBOX.<role>-<instance>.>`.
"""


def markdown() -> str:
    """Return the page."""
    parts = [_HEAD]
    for role in get_args(Role):
        row = permissions("SITE", role, "INSTANCE")
        parts.append(f"## {role}\n")
        parts.append(_list("Publishes", row.publish))
        parts.append(_list("Subscribes", row.subscribe))
        parts.append(f"Answers: {'yes' if row.responds else 'no'}\n")
    return "\n".join(parts)


def _list(title: str, subjects: tuple[str, ...]) -> str:
    return f"{title}:\n\n" + "".join(f"- `{subject}`\n" for subject in subjects)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(markdown(), "utf-8")
    else:
        sys.stdout.write(markdown())
