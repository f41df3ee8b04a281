"""Keeps what the API processes say of themselves, so that an adapter is unloaded only once nobody uses it.

Each API process reports a few times a second; the hot swap reads. Ages are told by the database's clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from server.store.clock import UnixNow
from server.store.database import Database
from server.store.rows import fetch_rows
from server.store.tables import presence


@dataclass(frozen=True, slots=True)
class Presence:
    """What one API process says of itself.

    `acknowledged` maps a task to the champion generation that its new episodes use, `in_flight` an adapter to its
    episodes under way.
    """

    id: str
    acknowledged: Mapping[str, int]
    in_flight: Mapping[str, int]
    seen_at: float = 0.0


class PresenceStore:
    """The API processes on one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = postgresql.insert if database.dialect == "postgresql" else sqlite.insert

    async def report(self, id: str, acknowledged: Mapping[str, int], in_flight: Mapping[str, int]) -> None:  # noqa: A002
        """Say that a process lives, which generations it uses and what it has in flight."""
        values = {"acknowledged": dict(acknowledged), "in_flight": dict(in_flight), "seen_at": UnixNow()}
        statement = self._insert(presence).values(id=id, **values)
        statement = statement.on_conflict_do_update(index_elements=["id"], set_=values)
        async with self._database.write() as connection:
            await connection.execute(statement)

    async def live(self, max_age_s: float) -> list[Presence]:
        """List the processes that reported within the last `max_age_s`, by id."""
        statement = select(presence).where(presence.c.seen_at >= UnixNow() - max_age_s).order_by(presence.c.id)
        async with self._database.read() as connection:
            return [Presence(**row) for row in await fetch_rows(connection, statement)]

    async def leave(self, id: str) -> None:  # noqa: A002
        """Forget a process that ended in good order."""
        async with self._database.write() as connection:
            await connection.execute(delete(presence).where(presence.c.id == id))
