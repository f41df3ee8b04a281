"""The episode log's own connections: rows into tables in one transaction, straight through the database's driver.

Opened by `Database.open_writer`, used by `EpisodeInserter`. The toolkit that everything else goes through costs more a
commit than the commit itself; `bench/episode_log.py` and `bench/gateway` measure it. A writer holds one connection and
serves one caller; after an error it may be used no more.
"""

import asyncio
import sqlite3
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import asyncpg
from sqlalchemy.engine import URL

Rows = Sequence[tuple[Any, ...]]
Guard = tuple[str, Any]
"""A query of one value, and what it has to be for a commit."""


class Unexpected(Exception):
    """A guard's value was another one. Nothing was committed."""


class Writer(Protocol):
    """One connection that commits rows."""

    async def write(self, batch: Sequence[tuple[str, Rows]], guard: Guard | None = None) -> None:
        """Commit statements with the rows that each is run for, all or none.

        The guard is asked within the transaction, once its statements hold their locks.

        Raises: Unexpected; what the driver raises.
        """
        ...

    async def close(self) -> None:
        """Give the connection back in good order."""
        ...

    def abandon(self) -> None:
        """Let go of the connection without a word to a server that may not answer."""
        ...


class PostgresWriter:
    """Implements `Writer` on a connection of asyncpg."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, url: URL, settings: Mapping[str, Any]) -> "PostgresWriter":
        """Connect to a normalised URL, with the same settings as the toolkit. Raises: what the driver raises."""
        dialect = url.get_dialect()()
        _, address = dialect.create_connect_args(url)
        return cls(await asyncpg.connect(**address, **settings))

    async def write(self, batch: Sequence[tuple[str, Rows]], guard: Guard | None = None) -> None:
        """Commit rows; see `Writer.write`."""
        async with self._connection.transaction():
            for statement, rows in batch:
                await self._connection.executemany(statement, rows)
            if guard is not None and await self._connection.fetchval(guard[0]) != guard[1]:
                raise Unexpected

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    def abandon(self) -> None:
        """Terminate the connection."""
        self._connection.terminate()


class SQLiteWriter:
    """Implements `Writer` on a connection of the standard library, in a thread of its own."""

    def __init__(self, path: str, *, busy_timeout_s: float) -> None:
        self._path = path
        self._busy_timeout_s = busy_timeout_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="episode-log")
        self._connection: sqlite3.Connection | None = None

    async def write(self, batch: Sequence[tuple[str, Rows]], guard: Guard | None = None) -> None:
        """Commit rows; see `Writer.write`."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._write, batch, guard)

    async def close(self) -> None:
        """Close the connection, once what it does is done."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    def abandon(self) -> None:
        """Close the connection as soon as what it does is done."""
        self._thread.submit(self._close)
        self._thread.shutdown(wait=False)

    def _write(self, batch: Sequence[tuple[str, Rows]], guard: Guard | None) -> None:
        if self._connection is None:
            self._connection = sqlite3.connect(self._path, timeout=self._busy_timeout_s, isolation_level=None)
            tune_sqlite(self._connection)
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for statement, rows in batch:
                self._connection.executemany(statement, rows)
            if guard is not None and self._connection.execute(guard[0]).fetchone() != (guard[1],):
                raise Unexpected
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def tune_sqlite(connection: Any) -> None:
    """Set what every connection to SQLite has: the write-ahead log, synced commits, foreign keys."""
    cursor = connection.cursor()
    # WAL: readers and the one writer do not block each other.
    cursor.execute("PRAGMA journal_mode=WAL")
    # In WAL mode a commit survives a kill -9 of the process with NORMAL already, for it is in the kernel's hands;
    # FULL also syncs the log on each commit, so that it survives a power cut, as PostgreSQL's commits do.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
