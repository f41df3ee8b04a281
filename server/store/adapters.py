"""Keeps the adapters' records: where their files lie, their hashes and where they stand.

Called by the promotion, the hot swap and the API. An adapter's name is written once and never used again.
"""

import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain import Adapter, AdapterStatus
from server.errors import Conflict, NotFound
from server.store.cleaning import clean_text
from server.store.database import Database
from server.store.deletions import TRAINED_ON_DELETED
from server.store.fencing import RoundEpoch, fence
from server.store.rows import clean_values, fetch_row, fetch_rows
from server.store.tables import adapters, rounds, verifiers
from server.store.withdrawals import TRAINED_ON_REVOKED

INHERITED = (TRAINED_ON_REVOKED, TRAINED_ON_DELETED)
"""How flags begin that go over to what goes on from an adapter."""


class AdapterStore:
    """The adapters of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, adapter: Adapter, *, epoch_of_round: RoundEpoch | None = None) -> Adapter:
        """Record a new adapter; a trainer gives its round's id and epoch.

        It is flagged where a version that it was trained on was revoked meanwhile, and inherits such flags.

        Raises: Conflict if the name was ever used; Fenced.
        """
        adapter = replace(adapter, created_at=adapter.created_at or time.time())
        try:
            async with self._database.write() as connection:
                await fence(connection, epoch_of_round)
                adapter = replace(adapter, flags=await _find_flags(connection, adapter))
                await connection.execute(insert(adapters).values(**clean_values(_encode(adapter))))
        except IntegrityError as error:
            raise Conflict(f"The adapter name {adapter.name!r} was used already") from error
        return adapter

    async def get(self, name: str) -> Adapter | None:
        """Find an adapter by its name."""
        async with self._database.read() as connection:
            row = await fetch_row(connection, select(adapters).where(adapters.c.name == clean_text(name)))
        return _decode(row) if row else None

    async def list(self, task: str | None = None) -> list[Adapter]:
        """List all adapters, or those of one task, newest first."""
        statement = select(adapters).order_by(adapters.c.created_at.desc(), adapters.c.name.desc())
        if task is not None:
            statement = statement.where(adapters.c.task == task)
        async with self._database.read() as connection:
            rows = await fetch_rows(connection, statement)
        return [_decode(row) for row in rows]

    async def add_fingerprints(
        self, name: str, fingerprints: Mapping[str, str], *, epoch_of_round: RoundEpoch | None = None
    ) -> Adapter:
        """Add to what an adapter was made for, or gated under since. Raises: NotFound; Fenced."""
        async with self._database.write() as connection:
            await fence(connection, epoch_of_round)
            locked = select(adapters).where(adapters.c.name == name).with_for_update()
            row = await fetch_row(connection, locked)
            if row is None:
                raise NotFound(f"There is no adapter {name!r}")
            merged = {**row["fingerprints"], **fingerprints}
            changing = update(adapters).where(adapters.c.name == name).values(fingerprints=merged)
            await connection.execute(changing)
        return _decode({**row, "fingerprints": merged})

    async def set_status(
        self,
        name: str,
        status: AdapterStatus,
        *,
        forced: bool | None = None,
        only_from: Collection[AdapterStatus] = tuple(AdapterStatus),
        epoch_of_round: RoundEpoch | None = None,
    ) -> Adapter:
        """Move an adapter to another status; `forced` marks, for good, that a human did it against the gate.

        Raises: NotFound; Conflict where it has none of the statuses `only_from`; Fenced.
        """
        changes: dict[str, Any] = {"status": str(status)}
        if forced is not None:
            changes["forced"] = forced
        async with self._database.write() as connection:
            await fence(connection, epoch_of_round)
            row = await fetch_row(
                connection,
                update(adapters)
                .where(adapters.c.name == name, adapters.c.status.in_([one.value for one in only_from]))
                .values(**changes)
                .returning(adapters),
            )
        if row is None:
            if (now := await self.get(name)) is not None:
                raise Conflict(f"{name!r} is {now.status}")
            raise NotFound(f"There is no adapter {name!r}")
        return _decode(row)


async def _find_flags(connection: AsyncConnection, adapter: Adapter) -> tuple[str, ...]:
    """List the flags of a new adapter. Rows are locked: a revocation at the same time sees it, or is seen."""
    flags = [*adapter.flags]
    names = {pin.partition("@")[0] for pin in adapter.verifiers}
    if names:
        columns = (verifiers.c.name, verifiers.c.version, verifiers.c.revoked_at)
        versions = select(*columns).where(verifiers.c.name.in_(names)).with_for_update(read=True)
        gone = [
            f"{row['name']}@{row['version']}" for row in await fetch_rows(connection, versions) if row["revoked_at"]
        ]
        flags += [TRAINED_ON_REVOKED + pin for pin in adapter.verifiers if pin in gone]
    went_on_from = select(rounds.c.parent).where(rounds.c.id == adapter.round_id)
    above = or_(adapters.c.name == adapter.parent, adapters.c.name.in_(went_on_from))
    parents = select(adapters.c.flags).where(above).order_by(adapters.c.name).with_for_update(read=True)
    for parent in await fetch_rows(connection, parents):
        flags += [flag for flag in parent["flags"] if flag.startswith(INHERITED)]
    return tuple(dict.fromkeys(flags))


def _encode(adapter: Adapter) -> dict[str, Any]:
    return {
        "name": adapter.name,
        "task": adapter.task,
        "path": adapter.path,
        "files": dict(adapter.files),
        "status": str(adapter.status),
        "round_id": adapter.round_id,
        "parent": adapter.parent,
        "forced": adapter.forced,
        "created_at": adapter.created_at,
        "verifiers": list(adapter.verifiers),
        "flags": list(adapter.flags),
        "fingerprints": dict(adapter.fingerprints),
        "decided_by": adapter.decided_by,
        "comment": adapter.comment,
    }


def _decode(row: Mapping[str, Any]) -> Adapter:
    lists = {name: tuple(row[name]) for name in ("verifiers", "flags")}
    return Adapter(**{**row, **lists, "status": AdapterStatus(row["status"])})
