"""Keeps the adapters' records: where their files lie, their hashes and where they stand.

Called by the promotion, the hot swap and the API. An adapter's name is written once and never used again.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from server.domain import Adapter, AdapterStatus
from server.errors import Conflict, NotFound
from server.store.database import Database
from server.store.fencing import RoundEpoch, fence
from server.store.rows import clean_values, fetch_row, fetch_rows
from server.store.tables import adapters


class AdapterStore:
    """The adapters of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, adapter: Adapter, *, epoch_of_round: RoundEpoch | None = None) -> Adapter:
        """Record a new adapter; a trainer gives its round's id and epoch.

        Raises: Conflict if the name was ever used; Fenced.
        """
        adapter = replace(adapter, created_at=adapter.created_at or time.time())
        values = {
            "name": adapter.name,
            "task": adapter.task,
            "path": adapter.path,
            "files": dict(adapter.files),
            "status": str(adapter.status),
            "round_id": adapter.round_id,
            "parent": adapter.parent,
            "forced": adapter.forced,
            "created_at": adapter.created_at,
        }
        try:
            async with self._database.write() as connection:
                await fence(connection, epoch_of_round)
                await connection.execute(insert(adapters).values(**clean_values(values)))
        except IntegrityError as error:
            raise Conflict(f"The adapter name {adapter.name!r} was used already") from error
        return adapter

    async def get(self, name: str) -> Adapter | None:
        """Find an adapter by its name."""
        async with self._database.read() as connection:
            row = await fetch_row(connection, select(adapters).where(adapters.c.name == name))
        return _decode(row) if row else None

    async def list(self, task: str | None = None) -> list[Adapter]:
        """List all adapters, or those of one task, newest first."""
        statement = select(adapters).order_by(adapters.c.created_at.desc(), adapters.c.name.desc())
        if task is not None:
            statement = statement.where(adapters.c.task == task)
        async with self._database.read() as connection:
            rows = await fetch_rows(connection, statement)
        return [_decode(row) for row in rows]

    async def set_status(
        self,
        name: str,
        status: AdapterStatus,
        *,
        forced: bool | None = None,
        epoch_of_round: RoundEpoch | None = None,
    ) -> Adapter:
        """Move an adapter to another status; `forced` marks, for good, that a human did it against the gate.

        Raises: NotFound; Fenced.
        """
        changes: dict[str, Any] = {"status": str(status)}
        if forced is not None:
            changes["forced"] = forced
        async with self._database.write() as connection:
            await fence(connection, epoch_of_round)
            row = await fetch_row(
                connection,
                update(adapters).where(adapters.c.name == name).values(**changes).returning(adapters),
            )
        if row is None:
            raise NotFound(f"There is no adapter {name!r}")
        return _decode(row)


def _decode(row: Mapping[str, Any]) -> Adapter:
    return Adapter(**{**row, "status": AdapterStatus(row["status"])})
