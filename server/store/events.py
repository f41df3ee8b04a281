"""Keeps the audit log: who did what to what. Called wherever a human or a round changes something that serves."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain import Event
from server.store.database import Database
from server.store.rows import clean_values, fetch_rows, to_json
from server.store.tables import events


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One line of the audit log and its number. `created_at` in Unix seconds."""

    id: int
    kind: str
    subject: str
    actor: str
    details: Mapping[str, Any]
    created_at: float


class EventStore:
    """The audit log of one database. Lines are added, never changed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, event: Event) -> Event:
        """Add a line."""
        async with self._database.write() as connection:
            return await write_event(connection, event)

    async def page(
        self, *, subject: str | None = None, kind: str | None = None, before: int | None = None, limit: int = 100
    ) -> list[LoggedEvent]:
        """List lines with their numbers, newest first, those below `before`; of one subject, of one kind."""
        statement = select(events)
        for column, value in ((events.c.subject, subject), (events.c.kind, kind)):
            if value is not None:
                statement = statement.where(column == value)
        if before is not None:
            statement = statement.where(events.c.id < before)
        async with self._database.read() as connection:
            rows = await fetch_rows(connection, statement.order_by(events.c.id.desc()).limit(limit))
        return [LoggedEvent(**row) for row in rows]

    async def list(self, limit: int = 100) -> list[Event]:
        """List the latest lines, newest first."""
        columns = [column for column in events.columns if column.name != "id"]
        async with self._database.read() as connection:
            rows = await fetch_rows(connection, select(*columns).order_by(events.c.id.desc()).limit(limit))
        return [Event(**row) for row in rows]


async def write_event(connection: AsyncConnection, event: Event) -> Event:
    """Add a line in the transaction that makes what it tells of."""
    event = replace(event, created_at=event.created_at or time.time())
    values = {"kind": event.kind, "subject": event.subject, "actor": event.actor, "created_at": event.created_at}
    await connection.execute(insert(events).values(**clean_values(values), details=to_json(event.details)))
    return event
