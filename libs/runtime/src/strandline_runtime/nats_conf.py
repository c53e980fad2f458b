"""The bus's own configuration, generated from the permission table. Pure: text in, text out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from strandline_contracts.names import Role, token
from strandline_contracts.permissions import Permissions, permissions

MAX_PAYLOAD_BYTES = 1024 * 1024
MAX_PENDING_BYTES = 64 * 1024 * 1024
RESPONSE_EXPIRES = "2m"
"""How long after a request its one answer may come."""


class User(NamedTuple):
    """A credential of the bus: who it is and its public nkey (U...)."""

    role: Role
    instance: str
    nkey: str


def server_config(
    *,
    site: str,
    users: Sequence[User],
    port: int,
    store_dir: Path,
    max_payload_bytes: int = MAX_PAYLOAD_BYTES,
    max_store_bytes: int = 8 * 1024**3,
) -> str:
    """Return the text of a nats-server configuration.

    `max_store_bytes` must hold the sum of the streams' limits. When the server syncs its files is
    left to it: nothing is safe on the bus (design §3).
    """
    jetstream = [
        f"store_dir: {_quoted(store_dir)}",
        f"domain: {_quoted(token(site))}",
        f"max_file_store: {max_store_bytes}",
        "max_memory_store: 0",
    ]
    lines = [
        f"server_name: {_quoted(f'strandline-{token(site)}')}",
        f'listen: "127.0.0.1:{port}"',
        f"max_payload: {max_payload_bytes}",
        f"max_pending: {max(MAX_PENDING_BYTES, 8 * max_payload_bytes)}",
        'write_deadline: "20s"',
        "jetstream {",
        *(f"  {line}" for line in jetstream),
        "}",
        "authorization {",
        "  users: [",
        *(_user(site, user) for user in users),
        "  ]",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _user(site: str, user: User) -> str:
    row = permissions(site, user.role, user.instance)
    return (
        f"    # {user.role} {token(user.instance)}\n"
        f"    {{ nkey: {_quoted(user.nkey)}, permissions: {{\n"
        f"{_rights(row)}"
        "    } }"
    )


def _rights(row: Permissions) -> str:
    # Without allow_responses nothing is answered: the server's default is to allow none.
    responses = (
        f'      allow_responses: {{ max: 1, expires: "{RESPONSE_EXPIRES}" }}\n'
        if row.responds
        else ""
    )
    return (
        f"      publish: {{ allow: {json.dumps(row.publish)} }}\n"
        f"      subscribe: {{ allow: {json.dumps(row.subscribe)} }}\n"
        f"{responses}"
    )


def _quoted(value: object) -> str:
    return json.dumps(str(value), ensure_ascii=False)
