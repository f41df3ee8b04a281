"""Writes the rows of many episodes in one transaction, and sets aside the ones that the database refuses.

Called by the episode log, for fresh episodes and for spooled ones. It must never lose an episode silently: what cannot
be stored ends in `rejected.jsonl` in the spool's folder, with the reason, and a line in the log.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog
from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect

from server.store.database import Database
from server.store.episode_rows import COLUMNS, TABLES, EpisodeRows, Row
from server.store.outages import is_refusal
from server.store.tombstones import NEWEST, Tombstones, fetch_tombstones
from server.store.writers import Unexpected, Writer

log = structlog.get_logger(__name__)

REJECTED = "rejected.jsonl"


def _insert_statement(table: Table, dialect: Dialect) -> str:
    """Compile the INSERT once; the driver then takes plain tuples, which costs a fifth of going through SQLAlchemy."""
    module = postgresql if dialect.name == "postgresql" else sqlite
    return str(module.insert(table).on_conflict_do_nothing().compile(dialect=dialect))


class EpisodeInserter:
    """Inserts episodes by their rows, each one whole or not at all. An id that is there already is left as it is.

    What was deleted is not inserted: neither an episode that was in memory or in a spool meanwhile.

    It keeps a connection for itself: lending one for each commit costs as much as the commit.
    """

    def __init__(self, database: Database, folder: Path, *, timeout_s: float) -> None:
        self._database = database
        self._folder = folder
        self._timeout_s = timeout_s
        self._writer: Writer | None = None
        self._tombstones = Tombstones()
        self._statements = [_insert_statement(table, database.engine.dialect) for table in TABLES]

    async def insert(self, batch: Sequence[EpisodeRows]) -> None:
        """Commit a batch. A batch that is refused is halved until the guilty one is alone, which is set aside.

        Raises: whatever the driver raises while the database is away; then anything may or may not be in it.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._insert_living(batch)
        except Exception as error:
            if not is_refusal(error):
                self._drop_writer()
                raise
            if len(batch) == 1:
                await asyncio.to_thread(set_aside, self._folder, batch[0], error)
                return
            middle = len(batch) // 2
            await self.insert(batch[:middle])
            await self.insert(batch[middle:])

    async def probe(self) -> None:
        """Ask the database for a sign of life. Raises: StoreUnavailable or TimeoutError."""
        async with asyncio.timeout(self._timeout_s):
            await self._database.ping()

    async def _insert_living(self, batch: Sequence[EpisodeRows]) -> None:
        """Insert what is not deleted, going by tombstones that were the newest when it was committed."""
        while True:
            if not (living := self._tombstones.keep(batch)):
                return
            try:
                await self._insert_all(living)
            except Unexpected:
                self._tombstones = await fetch_tombstones(self._database)
            else:
                return

    async def _insert_all(self, batch: Sequence[EpisodeRows]) -> None:
        rows: tuple[list[Row], ...] = (
            [record.episode for record in batch],
            [row for record in batch for row in record.attempts],
            [row for record in batch for row in record.reflections],
        )
        if self._writer is None:
            self._writer = await self._database.open_writer()
        await self._writer.write(
            [(statement, some) for statement, some in zip(self._statements, rows, strict=True) if some],
            (NEWEST, self._tombstones.newest),
        )

    async def close(self) -> None:
        """Give the connection back; the next insert opens a new one."""
        writer, self._writer = self._writer, None
        if writer is not None:
            await writer.close()

    def _drop_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.abandon()


def set_aside(folder: Path, record: EpisodeRows, error: BaseException) -> None:
    """Append a refused episode to the file of the rejected, readable for humans, synced. Raises: OSError."""
    line = msgspec.json.encode({"at": time.time(), "error": str(error), **_name_columns(record)}) + b"\n"
    folder.mkdir(parents=True, exist_ok=True)
    # One write at the end of the file: other processes append here too.
    descriptor = os.open(folder / REJECTED, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    log.error(
        "The database refuses an episode; it is set aside",
        episode=record.episode[0],
        file=str(folder / REJECTED),
        error=type(error).__name__,  # its words, which may quote a value, are in the file
    )


def _name_columns(record: EpisodeRows) -> dict[str, Any]:
    episode, attempts, reflections = COLUMNS
    return {
        "episode": dict(zip(episode, record.episode, strict=True)),
        "attempts": [dict(zip(attempts, row, strict=True)) for row in record.attempts],
        "reflections": [dict(zip(reflections, row, strict=True)) for row in record.reflections],
    }
