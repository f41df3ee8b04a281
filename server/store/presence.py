"""Keeps what the API processes say of themselves, so that an adapter is unloaded only once nobody uses it.

Each API process reports a few times a second; the hot swap reads. Ages are told by the database's clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
    episodes under way, `replicas` each engine that it sends requests to now to the adapters that it saw there.
    """

    id: str
    acknowledged: Mapping[str, int]
    in_flight: Mapping[str, int]
    seen_at: float = 0.0
    replicas: Mapping[str, Sequence[str]] = field(default_factory=dict)


class PresenceStore:
    """The API processes on one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = postgresql.insert if database.dialect == "postgresql" else sqlite.insert

    async def report(
        self,
        id: str,  # noqa: A002
        acknowledged: Mapping[str, int],
        in_flight: Mapping[str, int],
        replicas: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Say that a process lives, which generations it uses, what it has in flight and which engines it asks."""
        said = {url: sorted(names) for url, names in (replicas or {}).items()}
        values = {
            "acknowledged": dict(acknowledged),
            "in_flight": dict(in_flight),
            "seen_at": UnixNow(),
            "replicas": said,
        }
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
