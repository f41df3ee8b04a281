"""Keeps how often each verifier said what, by the hour. Every API process adds what it counted, in one statement."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import case, select
from sqlalchemy.dialects import postgresql, sqlite

from server.domain import VerdictCount
from server.store.database import Database
from server.store.rows import fetch_rows
from server.store.tables import verdict_counts

AT_ONCE = 500
"""How many rows one statement adds: SQLite binds no more than 32,766 values."""

_KEY = ("verifier", "hour", "status", "cause")


class VerdictCountStore:
    """The counts of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = postgresql.insert if database.dialect == "postgresql" else sqlite.insert

    async def add(self, counts: Sequence[VerdictCount]) -> None:
        """Add to what is there, all of it or nothing. No two of `counts` may be of the same thing and hour."""
        if not counts:
            return
        # In one order, so that processes that add at the same time wait for each other and never in a circle.
        rows = sorted((_encode(count) for count in counts), key=lambda row: tuple(row[name] for name in _KEY))
        async with self._database.write() as connection:
            for start in range(0, len(rows), AT_ONCE):
                statement = self._insert(verdict_counts).values(rows[start : start + AT_ONCE])
                had, added = verdict_counts.c, statement.excluded
                changes = {
                    "count": had.count + added.count,
                    "total_ms": had.total_ms + added.total_ms,
                    "slowest_ms": case((had.slowest_ms < added.slowest_ms, added.slowest_ms), else_=had.slowest_ms),
                }
                await connection.execute(statement.on_conflict_do_update(index_elements=_KEY, set_=changes))

    async def list(self, name: str, *, version: int | None = None, since_hour: int = 0) -> list[VerdictCount]:
        """List the counts of a registered verifier, of one version or of all, oldest hour first."""
        columns = verdict_counts.c
        if version is None:  # every pin of the name: "@" is followed by "A"
            of_it = (columns.verifier >= f"{name}@") & (columns.verifier < f"{name}A")
        else:
            of_it = columns.verifier == f"{name}@{version}"
        statement = select(verdict_counts).where(of_it, columns.hour >= since_hour)
        async with self._database.read() as connection:
            rows = await fetch_rows(connection, statement.order_by(columns.hour, columns.verifier))
        return [VerdictCount(**row) for row in rows]


def _encode(count: VerdictCount) -> dict[str, Any]:
    return {
        "verifier": count.verifier,
        "hour": count.hour,
        "status": count.status,
        "cause": count.cause,
        "count": count.count,
        "total_ms": count.total_ms,
        "slowest_ms": count.slowest_ms,
    }
