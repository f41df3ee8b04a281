"""Keeps the registered verifiers: immutable, versioned. Called by the API, which compiles them before they get here."""

import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError

from server.domain import VerifierVersion
from server.errors import Conflict
from server.store.database import Database
from server.store.rows import clean_values, fetch_one, fetch_row, fetch_rows, to_json
from server.store.tables import verifiers

MAX_RACES = 20


class VerifierStore:
    """The verifiers of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(
        self, name: str, kind: str, config: Mapping[str, Any], description: str = "", *, owner: str = ""
    ) -> VerifierVersion:
        """Add the next version of a verifier, the first if the name is new; a name keeps its first owner.

        Raises: Conflict if others add versions of it faster than this one can.
        """
        values = clean_values({"name": name, "kind": kind, "description": description, "created_at": time.time()})
        version = select(func.coalesce(func.max(verifiers.c.version), 0) + 1).where(verifiers.c.name == values["name"])
        first = select(verifiers.c.owner).where(verifiers.c.name == values["name"], verifiers.c.version == 1)
        kept = func.coalesce(first.scalar_subquery(), owner)
        statement = (
            insert(verifiers)
            .values(**values, config=to_json(config), version=version.scalar_subquery(), owner=kept)
            .returning(verifiers)
        )
        for _ in range(MAX_RACES):
            try:
                async with self._database.write() as connection:
                    return VerifierVersion(**await fetch_one(connection, statement))
            except IntegrityError:
                continue  # another process took that number; the key of the table let only one of us through
        raise Conflict(f"Too many others are adding versions of {name!r}")

    async def get(self, name: str, version: int | None = None) -> VerifierVersion | None:
        """Find a version; None means the latest."""
        statement = select(verifiers).where(verifiers.c.name == name).order_by(verifiers.c.version.desc()).limit(1)
        if version is not None:
            statement = statement.where(verifiers.c.version == version)
        async with self._database.read() as connection:
            row = await fetch_row(connection, statement)
        return VerifierVersion(**row) if row else None

    async def versions(self, name: str) -> list[VerifierVersion]:
        """All versions of one verifier, newest first."""
        statement = select(verifiers).where(verifiers.c.name == name).order_by(verifiers.c.version.desc())
        async with self._database.read() as connection:
            rows = await fetch_rows(connection, statement)
        return [VerifierVersion(**row) for row in rows]

    async def list(self) -> list[VerifierVersion]:
        """List the latest version of each verifier, by name."""
        latest = select(verifiers.c.name, func.max(verifiers.c.version).label("version")).group_by(verifiers.c.name)
        newest = latest.subquery()
        statement = (
            select(verifiers)
            .join(newest, (verifiers.c.name == newest.c.name) & (verifiers.c.version == newest.c.version))
            .order_by(verifiers.c.name)
        )
        async with self._database.read() as connection:
            rows = await fetch_rows(connection, statement)
        return [VerifierVersion(**row) for row in rows]
