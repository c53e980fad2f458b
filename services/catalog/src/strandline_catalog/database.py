"""The connection to Postgres: comes back by itself, and says DatabaseDown while it is away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg

from strandline_catalog.errors import BadDsn, CatalogFault, DatabaseDown
from strandline_catalog.migrate import SCHEMA, migrate, read_migrations
from strandline_runtime.logs import logger
from strandline_runtime.patience import set_within

POOL_MAX_CONNECTIONS = 6
CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 30.0
LOOK_EVERY_S = 5.0
FIRST_RETRY_S = 0.1
LONGEST_RETRY_S = 5.0

# Errors of the bytes that were to be written: they come again however often one tries.
_OF_THE_DATA = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
# asyncpg tells of a connection that was cut in the middle of something by InternalClientError too.
_GONE = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)

# Writers take turns: what one reads of offsets and totals stays so until it has written.
_WRITE_LOCK = 0x5354524E_43415402


class Database:
    """A pool of connections to a migrated schema.

    `up` is set while it works. `generation` grows each time that it has come up: whoever keeps
    something about the database in memory looks whether it is still the same one.
    """

    def __init__(self, dsn_file: Path) -> None:
        self._dsn_file = dsn_file
        self._pool: Any = None
        self._doubt = asyncio.Event()
        self._callbacks: list[Callable[[], None]] = []
        self._log = logger()
        self.up = asyncio.Event()
        self.generation = 0
        self.problem = "not connected yet"

    def on_up(self, callback: Callable[[], None]) -> None:
        """Call `callback` each time that the database has come up."""
        self._callbacks.append(callback)

    def look(self) -> None:
        """Look soon whether the database is still there."""
        self._doubt.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Connect, watch, reconnect with growing waits, until `stop` is set."""
        retry_s = FIRST_RETRY_S
        try:
            while not stop.is_set():
                self._doubt.clear()
                if await self._works():
                    retry_s = FIRST_RETRY_S
                    await set_within(self._doubt, LOOK_EVERY_S)
                elif not await self._open():
                    await asyncio.sleep(retry_s)
                    retry_s = min(retry_s * 2, LONGEST_RETRY_S)
        finally:
            self._drop()

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """Give a connection of asyncpg; its errors become DatabaseDown, but those of the data."""
        if not self.up.is_set():
            raise DatabaseDown(f"the catalog's database is down: {self.problem}")
        try:
            async with self._pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
                yield connection
        except _OF_THE_DATA:
            raise
        except _GONE as error:
            self.problem = _text(error)
            self.up.clear()
            self.look()
            raise DatabaseDown(f"the catalog's database failed: {self.problem}") from error

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[Any]:
        """Give a connection in a transaction; one writer at a time. Raises DatabaseDown."""
        async with self.connection() as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _WRITE_LOCK)
            yield connection

    async def _works(self) -> bool:
        if self._pool is None or not self.up.is_set():
            return False
        try:
            async with self.connection() as connection:
                await connection.execute("SELECT FROM stream_position LIMIT 1")
        except DatabaseDown as error:
            self._log.warning("catalog.database_lost", error=error.message)
            return False
        return True

    async def _open(self) -> bool:
        """Make a new pool on a migrated schema; return whether that went well."""
        self._drop()
        try:
            dsn = await asyncio.to_thread(read_dsn, self._dsn_file)
            self._pool = await asyncpg.create_pool(
                dsn,
                min_size=1,
                max_size=POOL_MAX_CONNECTIONS,
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=COMMAND_TIMEOUT_S,
                server_settings={"search_path": SCHEMA, "application_name": "strandline-catalog"},
            )
            async with self._pool.acquire() as connection:
                applied = await migrate(connection, await asyncio.to_thread(read_migrations))
        except (*_GONE, ValueError, CatalogFault) as error:
            self.problem = _text(error)
            self._log.warning("catalog.database_down", error=self.problem)
            return False
        self.problem = ""
        self.generation += 1
        self.up.set()
        self._log.info("catalog.database_up", migrated=applied)
        for callback in self._callbacks:
            callback()
        return True

    def _drop(self) -> None:
        self.up.clear()
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None


def read_dsn(path: Path) -> str:
    """Return the address that `path` holds, else raise BadDsn."""
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise BadDsn(f"{path} is open to others")
            dsn = file.read(4096).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadDsn(f"{path}: {error}") from error
    if not dsn:
        raise BadDsn(f"{path} is empty")
    return dsn


def _text(error: BaseException) -> str:
    """One line; a driver's message may go over many, and never holds the password."""
    return " ".join(str(error).split())[:300] or type(error).__name__
