"""Opens the database, SQLite or PostgreSQL, and lends short transactions to the stores.

Owned by the composition roots, which close it. No transaction may be held across an await of anything but the
database itself: generation takes seconds, and SQLite has one writer.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, async_sessionmaker, create_async_engine

from server.errors import StoreUnavailable
from server.store.cleaning import decode_json, encode_json
from server.store.outages import is_outage, is_unmigrated
from server.store.writers import PostgresWriter, SQLiteWriter, Writer, tune_sqlite

log = structlog.get_logger(__name__)

_IMMEDIATE = "mulligan_immediate"
POSTGRES_SETTINGS = {"timeout": 5.0, "command_timeout": 30.0, "server_settings": {"application_name": "mulligan"}}


def normalise_url(url: str) -> URL:
    """Turn `sqlite:///path`, `postgresql://...` or `postgres://...` into the URL of an asynchronous driver.

    Raises: ValueError for another database, or for SQLite without a file (each connection would see its own).
    """
    parsed = make_url(url)
    backend = parsed.drivername.split("+")[0]
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise ValueError("SQLite needs a file: sqlite:///path/to/mulligan.db")
        return parsed.set(drivername="sqlite+aiosqlite")
    if backend in ("postgresql", "postgres"):
        query = dict(parsed.query)
        if "sslmode" in query:  # libpq's name for what asyncpg calls `ssl`
            query["ssl"] = query.pop("sslmode")
        return parsed.set(drivername="postgresql+asyncpg", query=query)
    raise ValueError(f"{backend} is not supported: use sqlite:///... or postgresql://...")


def _tune_sqlite(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves; the driver would leave out reads and DDL
        tune_sqlite(connection)

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes the lock at once: one that read first could be refused the lock without any wait.
        immediate = connection.get_execution_options().get(_IMMEDIATE, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _plan_afresh(engine: AsyncEngine) -> None:
    """Have PostgreSQL plan each query for its values.

    A plan made once for any values knows neither the limit nor how much of the log is of a task, and may sort all of it
    for one page; and it locks every month. Said after connecting: a pooler may refuse it as a startup parameter.
    """

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("SET plan_cache_mode = force_custom_plan")
        cursor.close()
        connection.commit()


def open_engine(url: URL, *, busy_timeout_s: float = 5.0, command_timeout_s: float | None = 30.0) -> AsyncEngine:
    """Make the engine of a normalised URL. It connects when first used."""
    # What an error of the toolkit says must not show the values: they hold what was said.
    shared: dict[str, Any] = {"json_serializer": encode_json, "json_deserializer": decode_json, "hide_parameters": True}
    if url.get_backend_name() == "sqlite":
        Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
        engine = create_async_engine(url, connect_args={"timeout": busy_timeout_s}, **shared)
        _tune_sqlite(engine)
        return engine
    connect_args = {**POSTGRES_SETTINGS, "command_timeout": command_timeout_s}
    engine = create_async_engine(url, pool_pre_ping=True, pool_timeout=10, connect_args=connect_args, **shared)
    _plan_afresh(engine)
    return engine


class Database:
    """One database and its connection pool."""

    def __init__(self, url: str, *, busy_timeout_s: float = 5.0) -> None:
        self.url = normalise_url(url)
        self.dialect = self.url.get_backend_name()
        self.engine = open_engine(self.url, busy_timeout_s=busy_timeout_s)
        self._busy_timeout_s = busy_timeout_s
        self.sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        self._writing = self.engine.execution_options(**{_IMMEDIATE: True})

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection for reading, in one transaction. Raises: StoreUnavailable."""
        async with self._begin(self.engine) as connection:
            yield connection

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection for reading everything as it is at one moment, however long. Raises: StoreUnavailable."""
        engine = self.engine
        if self.dialect == "postgresql":
            engine = open_engine(self.url, command_timeout_s=None)
        try:
            repeatable = engine.execution_options(
                **({"isolation_level": "REPEATABLE READ"} if self.dialect == "postgresql" else {})
            )
            async with self._begin(repeatable) as connection:
                yield connection
        finally:
            if engine is not self.engine:
                await engine.dispose()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection for writing; commits at the end of the block. Raises: StoreUnavailable."""
        async with self._begin(self._writing) as connection:
            yield connection

    async def open_writer(self) -> Writer:
        """Open a connection for the episode log alone. Raises: what the driver raises."""
        if self.dialect == "postgresql":
            return await PostgresWriter.open(self.url, POSTGRES_SETTINGS)
        return SQLiteWriter(str(self.url.database), busy_timeout_s=self._busy_timeout_s)

    @asynccontextmanager
    async def _begin(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        try:
            async with engine.begin() as connection:
                yield connection
        except (SQLAlchemyError, OSError) as error:
            if not is_outage(error):
                raise
            # Clients read this message, so the address and the words of the driver stay in the cause.
            hint = " (was `mulligan db upgrade` run?)" if is_unmigrated(error) else ""
            raise StoreUnavailable(f"The database cannot be used now{hint}") from error

    async def forget_free_pages(self) -> bool:
        """Empty SQLite's write-ahead log into the file; False where a reader is in the way. Nothing on PostgreSQL."""
        if self.dialect != "sqlite":
            return True
        async with self.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            (busy, *_) = (await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")).one()
        return not busy

    def is_there(self) -> bool:
        """Say whether there is something to open: a file of SQLite that is missing would be made."""
        return self.dialect != "sqlite" or Path(self.url.database or "").is_file()

    async def ping(self) -> None:
        """Ask the database for a sign of life. Raises: StoreUnavailable."""
        async with self.read() as connection:
            await connection.execute(text("SELECT 1"))

    async def close(self) -> None:
        """Close all connections."""
        await self.engine.dispose()
