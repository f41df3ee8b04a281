"""Keeps what the workers say of themselves: that they live, for which pool, what they do, and what they found.

Each worker reports every few seconds, also while it trains; the doctor and the API read. Ages are told by the
database's clock.
"""

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from server.domain import Check, TrainerPresence
from server.store.clock import UnixNow
from server.store.database import Database
from server.store.rows import fetch_rows, to_json
from server.store.tables import trainers

FORGOTTEN_AFTER_S = 86400.0


class TrainerStore:
    """The workers on one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = postgresql.insert if database.dialect == "postgresql" else sqlite.insert

    async def report(self, id: str, pool: str, preflight: Sequence[Check] | None = None) -> None:  # noqa: A002
        """Say that a worker lives; and what it found, where it has just looked."""
        values: dict[str, Any] = {"pool": pool, "seen_at": UnixNow()}
        if preflight is not None:
            values["preflight"] = {"at": time.time(), "checks": to_json(preflight)}
        made = {"preflight": {}, **values}
        statement = self._insert(trainers).values(id=id, started_at=UnixNow(), **made)
        async with self._database.write() as connection:
            await connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))
            await connection.execute(delete(trainers).where(trainers.c.seen_at < UnixNow() - FORGOTTEN_AFTER_S))

    async def live(self, max_age_s: float) -> list[TrainerPresence]:
        """List the workers that reported within the last `max_age_s`, by id."""
        statement = select(trainers).where(trainers.c.seen_at >= UnixNow() - max_age_s).order_by(trainers.c.id)
        async with self._database.read() as connection:
            return [TrainerPresence(**row) for row in await fetch_rows(connection, statement)]

    async def leave(self, id: str) -> None:  # noqa: A002
        """Forget a worker that ended in good order."""
        async with self._database.write() as connection:
            await connection.execute(delete(trainers).where(trainers.c.id == id))
