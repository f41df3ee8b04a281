"""Makes and drops the partitions of the log's tables on PostgreSQL. Called by retention; on SQLite there are none.

No request ever needs a partition to be made first: the default one takes what no other does. Whatever locks the log's
tables waits for them a fraction of a second at most, because everybody else waits behind it; then it gives up, and its
caller comes again. One process at a time, by an advisory lock.
"""

# ruff: noqa: S608 - the names in these statements are our own

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import structlog
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from server.errors import StoreUnavailable
from server.store.database import Database
from server.store.partitions import DEFAULT, KEYS, LOG, Month
from server.store.rows import fetch_rows

log = structlog.get_logger(__name__)

PARENT, *CHILDREN = LOG
ADVISORY_LOCK = 0x6D6F6E74  # any number of our own: "mont"
LOCK_TIMEOUT_MS = 400  # below the server's `deadlock_timeout`: it is we who give way, never a request
TRIES, PAUSE_S = 5, 1.0
MOST_MOVED = 50_000  # rows that are moved out of the default partition to make a month of them
EXACT_BELOW = 100_000  # rows that are counted one by one; above it the server's estimate is told
_LOCK_NOT_AVAILABLE = "55P03"
_TO_DROP = "_to_drop"

T = TypeVar("T")

_LIST = """
SELECT substr(c.relname, 10) AS name, pg_get_expr(c.relpartbound, c.oid) AS bounds, c.reltuples::bigint AS rows,
       pg_total_relation_size(c.oid)
       + coalesce(pg_total_relation_size(to_regclass('attempts' || substr(c.relname, 9))), 0)
       + coalesce(pg_total_relation_size(to_regclass('reflections' || substr(c.relname, 9))), 0) AS bytes
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = to_regclass('episodes') ORDER BY c.relname
"""


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition of all three tables: the ids from `first` on ("": from the very first) and below `past`.

    `past` is None of the default partition. `rows` are episodes, counted or, where they are many, estimated; `bytes`
    are those of the three tables with their indexes.
    """

    name: str
    first: str
    past: str | None
    rows: int
    bytes: int

    def holds(self, month: Month) -> bool:
        """Say whether what is made in that month goes here."""
        return self.past is not None and self.first <= month.first_id < self.past


class MonthStore:
    """The partitions of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.partitioned = database.dialect == "postgresql"

    async def read(self) -> list[Partition]:
        """Read the partitions, oldest first, the default one last; none on SQLite."""
        if not self.partitioned:
            return []
        async with self._database.read() as connection:
            return [await _count(connection, one) for one in await _list(connection)]

    async def make(self, first: Month, count: int) -> list[str]:
        """Make what partitions are missing for `count` months, from `first` on; return their names.

        A month of which the default partition holds too many episodes already is left to that one.
        """
        if not self.partitioned:
            return []
        async with self._database.read() as connection:
            there = await _list(connection)
        months = [first.plus(step) for step in range(count)]
        missing = [month for month in months if not any(one.holds(month) for one in there)]
        return [month.name for month in missing if await self._insist(lambda month=month: self._make(month))]

    async def drop(self, partition: Partition, keep: Sequence[str] = ()) -> bool:
        """Drop a partition with all that it holds, but for these episodes, which go to the default partition.

        False where others were in the way all the time; then nothing happened.
        """
        dropped = await self._insist(lambda: self._detach(partition.name, list(keep)))
        await self.sweep()
        return bool(dropped)

    async def sweep(self) -> int:
        """Drop the tables that were detached to be dropped, also by a process that died then; return how many."""
        if not self.partitioned:
            return 0
        find = "SELECT relname AS name FROM pg_class WHERE relkind = 'r' AND NOT relispartition AND relname ~ :pattern"
        pattern = rf"^({'|'.join(LOG)})_.*{_TO_DROP}$"
        async with self._database.write() as connection:
            found = [row["name"] for row in await fetch_rows(connection, text(find).bindparams(pattern=pattern))]
            if found:
                await connection.execute(text(f"DROP TABLE IF EXISTS {', '.join(sorted(found))} CASCADE"))
        return len(found)

    async def analyse(self) -> None:
        """Gather the planner's figures over all partitions together, which the server never does by itself."""
        if self.partitioned:
            async with self._database.write() as connection:
                await connection.execute(text(f"ANALYZE {', '.join(LOG)}"))

    async def _insist(self, work: Callable[[], Awaitable[T]]) -> T | None:
        """Do what needs a lock, a few times if need be. Raises: StoreUnavailable."""
        for attempt in range(TRIES):
            try:
                return await work()
            except StoreUnavailable as error:
                if not _is_lock_timeout(error):
                    raise
                if attempt + 1 < TRIES:
                    await asyncio.sleep(PAUSE_S)
        log.warning("The log's partitions are left as they are: its tables are locked. It is tried again later")
        return None

    @asynccontextmanager
    async def _alone(self):  # noqa: ANN202 - a connection, or None where another process is at it
        async with self._database.write() as connection:
            await connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
            mine = await connection.scalar(text(f"SELECT pg_try_advisory_xact_lock({ADVISORY_LOCK})"))
            yield connection if mine else None

    async def _make(self, month: Month) -> bool:
        async with self._alone() as connection:
            if connection is None or any(one.holds(month) for one in await _list(connection)):
                return False
            bounds = {"first": month.first_id, "past": month.plus(1).first_id, "most": MOST_MOVED + 1}
            inside = f"FROM {PARENT}_{DEFAULT} WHERE id >= :first AND id < :past"
            counting = text(f"SELECT count(*) FROM (SELECT {inside} LIMIT :most) AS few")
            stray = await connection.scalar(counting, bounds)
            if stray > MOST_MOVED:
                log.warning("A month stays in the default partition, which holds much of it", month=month.name)
                return False
            await _create(connection, month)
            if stray:
                await _move(connection, month)
            for table in LOG:
                await connection.execute(text(_attach(table, month)))
            return True

    async def _detach(self, name: str, keep: list[str]) -> bool:
        async with self._alone() as connection:
            if connection is None or name not in {one.name for one in await _list(connection)}:
                return False
            # The parents first and in the order in which everybody takes them.
            await connection.execute(text(f"LOCK TABLE ONLY {', '.join(LOG)} IN ACCESS EXCLUSIVE MODE"))
            for table in LOG:
                await connection.execute(text(f"ALTER TABLE {table} DETACH PARTITION {table}_{name}"))
                if keep:
                    kept = f"INSERT INTO {table} SELECT * FROM {table}_{name} WHERE {KEYS[table]} = ANY(:keep)"
                    await connection.execute(text(kept), {"keep": keep})
                await connection.execute(text(f"ALTER TABLE {table}_{name} RENAME TO {table}_{name}{_TO_DROP}"))
            return True


async def _list(connection: AsyncConnection) -> list[Partition]:
    found: list[Partition] = []
    for row in await fetch_rows(connection, text(_LIST)):
        ends = re.fullmatch(r"FOR VALUES FROM \((?:'(.*)'|MINVALUE)\) TO \('(.*)'\)", row["bounds"])
        first, past = ((ends[1] or ""), ends[2]) if ends else ("", None)
        found.append(Partition(row["name"], first, past, row["rows"], int(row["bytes"])))
    return sorted(found, key=lambda one: (one.past is None, one.first))


async def _count(connection: AsyncConnection, one: Partition) -> Partition:
    """Count a partition's episodes where the server's estimate says that they are few, or says nothing."""
    if one.rows >= EXACT_BELOW:
        return one
    return replace(one, rows=await connection.scalar(text(f"SELECT count(*) FROM {PARENT}_{one.name}")) or 0)


async def _create(connection: AsyncConnection, month: Month) -> None:
    """Create a month's tables, outside still: to create them inside would lock the whole log."""
    parts = "INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES INCLUDING STORAGE"
    for table in LOG:
        await connection.execute(text(f"CREATE TABLE {table}_{month.name} (LIKE {table} {parts})"))
    for table in CHILDREN:
        target = f"FOREIGN KEY (episode_id) REFERENCES {PARENT}_{month.name} (id) ON DELETE CASCADE"
        name = f"fk_{table}_episode_id_{PARENT}"
        await connection.execute(text(f"ALTER TABLE {table}_{month.name} ADD CONSTRAINT {name} {target}"))


async def _move(connection: AsyncConnection, month: Month) -> None:
    """Move a month's rows out of the default partition, whose tables are locked from here on."""
    defaults = [f"{table}_{DEFAULT}" for table in LOG]
    await connection.execute(text(f"LOCK TABLE {', '.join(defaults)} IN ACCESS EXCLUSIVE MODE"))
    bounds = {"first": month.first_id, "past": month.plus(1).first_id}
    for table in LOG:
        inside = f"{table}_{DEFAULT} WHERE {KEYS[table]} >= :first AND {KEYS[table]} < :past"
        await connection.execute(text(f"INSERT INTO {table}_{month.name} SELECT * FROM {inside}"), bounds)
    await connection.execute(text(f"DELETE FROM {PARENT}_{DEFAULT} WHERE id >= :first AND id < :past"), bounds)


def _attach(table: str, month: Month) -> str:
    values = f"FROM ('{month.first_id}') TO ('{month.plus(1).first_id}')"
    return f"ALTER TABLE {table} ATTACH PARTITION {table}_{month.name} FOR VALUES {values}"


def _is_lock_timeout(error: StoreUnavailable) -> bool:
    cause = error.__cause__
    return isinstance(cause, DBAPIError) and getattr(cause.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE
