"""Brings the catalog's schema to this version: numbered SQL files, each applied once, in order."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from strandline_catalog.errors import BadMigration

SCHEMA = "strandline"

_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql\Z")
# Any number that all catalogs of a database share: one of them migrates, the others wait.
_LOCK = 0x5354524E_43415401


class Migration(NamedTuple):
    """One file; `checksum` is the SHA-256 of its text, in hexadecimal."""

    number: int
    name: str
    checksum: str
    sql: str


def read_migrations() -> list[Migration]:
    """Return the migrations of this package by number."""
    found = []
    for file in files("strandline_catalog").joinpath("migrations").iterdir():
        if match := _NAME.match(file.name):
            sql = file.read_text("utf-8")
            checksum = hashlib.sha256(sql.encode()).hexdigest()
            found.append(Migration(int(match[1]), match[2], checksum, sql))
    return sorted(found)


def missing(migrations: Sequence[Migration], applied: Mapping[int, str]) -> list[Migration]:
    """Return what is to be applied where `applied` (number to checksum) was; else BadMigration."""
    known = {migration.number: migration for migration in migrations}
    if sorted(known) != list(range(1, len(migrations) + 1)):
        raise BadMigration(f"migrations are not numbered from 1 on, each once: {sorted(known)}")
    for number, checksum in sorted(applied.items()):
        if number not in known:
            raise BadMigration(f"migration {number} was applied by a newer catalog")
        if known[number].checksum != checksum:
            raise BadMigration(f"migration {number} has changed since it was applied")
    if sorted(applied) != list(range(1, len(applied) + 1)):
        raise BadMigration(f"migrations were applied out of order: {sorted(applied)}")
    return [migration for migration in migrations if migration.number > len(applied)]


async def migrate(connection: Any, migrations: Sequence[Migration]) -> list[int]:
    """Apply what is missing, each in a transaction of its own; return the numbers applied.

    `connection` is asyncpg's, its search_path being SCHEMA. Raises BadMigration.
    """
    await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
    try:
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        await connection.execute(
            f"""CREATE TABLE IF NOT EXISTS {SCHEMA}.migration (
                    number integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,
                    applied_at timestamptz NOT NULL DEFAULT now())"""
        )
        rows = await connection.fetch("SELECT number, checksum FROM migration")
        wanted = missing(migrations, {row["number"]: row["checksum"] for row in rows})
        for migration in wanted:
            async with connection.transaction():
                await connection.execute(migration.sql)
                await connection.execute(
                    "INSERT INTO migration (number, name, checksum) VALUES ($1, $2, $3)",
                    *migration[:3],
                )
        return [migration.number for migration in wanted]
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK)
