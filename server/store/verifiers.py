"""Keeps the registered verifiers: immutable, versioned. Called by the API, which compiles them before they get here.

What withdraws a version again, for good, is in `server.store.withdrawals`.
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Select, and_, case, func, insert, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain import TaskVerifier, VerifierVersion
from server.errors import Conflict, Forbidden, InvalidRequest
from server.store.cleaning import decode_json, encode_json
from server.store.database import Database
from server.store.rows import clean_values, fetch_one, fetch_row, fetch_rows, to_json
from server.store.tables import verifiers

MAX_RACES = 20
RESERVED = frozenset({"kinds"})
"""Names that stand for something else where verifiers are asked for."""

OF_OWNER = "comes from an admin, or from the key that registered the name first."
"""Whoever says the name alone means its latest version, so nobody else may bring one."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_deterministic = msgspec.json.Encoder(order="deterministic")
_live = and_(verifiers.c.archived_at.is_(None), verifiers.c.revoked_at.is_(None))


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """What became of a version that nothing new may be bound to."""

    name: str
    version: int
    archived_at: float | None
    revoked_at: float | None
    revoked_reason: str

    @property
    def pin(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"


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
        return (await self._add(VerifierVersion(name, 0, kind, config, description, owner), once=False))[0]

    async def register(
        self,
        name: str,
        kind: str,
        config: Mapping[str, Any],
        description: str = "",
        *,
        owner: str = "",
        own_only: bool = False,
    ) -> tuple[VerifierVersion, bool]:
        """Add the next version, unless the newest one says the same already; tell whether one was added.

        The same is the same kind and config, and no other description. A withdrawn version is never given back. With
        `own_only` the name has to be new, or the owner's own.

        Raises: InvalidRequest for a name that cannot be; Forbidden for another's; Conflict as `add`.
        """
        if not _NAME.fullmatch(name):
            message = "A verifier's name has letters, digits, '_', '.', '-' and at most 64 of them."
            raise InvalidRequest(message, param="name")
        if name in RESERVED:
            raise InvalidRequest(f"No verifier can be called {name!r}: that path lists the kinds.", param="name")
        wanted = VerifierVersion(name, 0, kind, config, description, owner)
        return await self._add(wanted, once=True, own_only=own_only)

    async def _add(
        self, wanted: VerifierVersion, *, once: bool, own_only: bool = False
    ) -> tuple[VerifierVersion, bool]:
        values = clean_values({"name": wanted.name, "kind": wanted.kind, "description": wanted.description})
        of_name = verifiers.c.name == values["name"]
        version = select(func.coalesce(func.max(verifiers.c.version), 0) + 1).where(of_name)
        first = select(verifiers.c.owner).where(of_name, verifiers.c.version == 1)
        kept = func.coalesce(first.scalar_subquery(), wanted.owner)
        statement = insert(verifiers).returning(verifiers)
        for _ in range(MAX_RACES):
            try:
                async with self._database.write() as connection:
                    newest = await _find_newest(connection, values["name"]) if once else None
                    if own_only and newest is not None and newest.owner != wanted.owner:
                        raise Forbidden(f"The next version of {wanted.name!r} {OF_OWNER}", param="name")
                    if newest is not None and _says_the_same(newest, wanted):
                        return newest, False
                    seen = newest.version + 1 if newest else 1  # no later one: what it says was not compared
                    number = seen if once else version.scalar_subquery()
                    row = {**values, "config": to_json(wanted.config), "version": number, "owner": kept}
                    made = await fetch_one(connection, statement.values(**row, created_at=time.time()))
                    return VerifierVersion(**made), True
            except IntegrityError:
                continue  # another process took that number; the key of the table let only one of us through
        raise Conflict(f"Too many others are adding versions of {wanted.name!r}")

    async def get(self, name: str, version: int | None = None) -> VerifierVersion | None:
        """Find a version; None means the latest that may be bound, or just the latest where none may."""
        statement = select(verifiers).where(verifiers.c.name == name)
        if version is not None:
            statement = statement.where(verifiers.c.version == version)
        newest_first = statement.order_by(case((_live, 0), else_=1), verifiers.c.version.desc()).limit(1)
        async with self._database.read() as connection:
            row = await fetch_row(connection, newest_first)
        return VerifierVersion(**row) if row else None

    async def pin(self, name: str, version: int | None = None, *, param: str | None = None) -> VerifierVersion:
        """Find a version that something new may be bound to; the latest such without a number.

        Raises: InvalidRequest, saying whether it is missing, archived or revoked.
        """
        found = await self.get(name, version)
        if found is None:
            wanted = name if version is None else f"{name}@{version}"
            message = f"There is no verifier {wanted!r}: GET /v1/verifiers lists what there is."
            raise InvalidRequest(message, param=param, code="verifier_not_found")
        refuse_withdrawn(found, param)
        return found

    async def versions(self, name: str) -> list[VerifierVersion]:
        """All versions of one verifier, newest first."""
        statement = select(verifiers).where(verifiers.c.name == name).order_by(verifiers.c.version.desc())
        return await self._fetch(statement)

    async def withdrawn(self) -> list[Withdrawn]:
        """List the versions that were archived or revoked, without what they are made of."""
        columns = [verifiers.c[name] for name in Withdrawn.__dataclass_fields__]
        gone = or_(verifiers.c.archived_at.is_not(None), verifiers.c.revoked_at.is_not(None))
        async with self._database.read() as connection:
            return [Withdrawn(**row) for row in await fetch_rows(connection, select(*columns).where(gone))]

    async def revoked(self) -> frozenset[str]:
        """List the pins of the versions whose verdicts nothing may be learnt from."""
        return frozenset(one.pin for one in await self.withdrawn() if one.revoked_at is not None)

    async def _fetch(self, statement: Select) -> list[VerifierVersion]:
        async with self._database.read() as connection:
            return [VerifierVersion(**row) for row in await fetch_rows(connection, statement)]

    async def newest(self) -> dict[str, int]:
        """Find the number of the latest version of each verifier that may be bound: without what it is made of."""
        numbers = select(verifiers.c.name, func.max(verifiers.c.version).label("version")).where(_live)
        async with self._database.read() as connection:
            rows = await fetch_rows(connection, numbers.group_by(verifiers.c.name))
        return {row["name"]: row["version"] for row in rows}

    async def list(self, *, archived: bool = False) -> list[VerifierVersion]:
        """List one version of each verifier, by name: as `get` finds it. `archived`: those that are archived, too."""
        live = func.max(case((_live, verifiers.c.version)))
        version = func.coalesce(live, func.max(verifiers.c.version)).label("version")
        latest = select(verifiers.c.name, version).group_by(verifiers.c.name)
        if not archived:
            latest = latest.where(verifiers.c.archived_at.is_(None))
        newest = latest.subquery()
        statement = (
            select(verifiers)
            .join(newest, and_(verifiers.c.name == newest.c.name, verifiers.c.version == newest.c.version))
            .order_by(verifiers.c.name)
        )
        return await self._fetch(statement)


def refuse_withdrawn(version: VerifierVersion, param: str | None = None) -> None:
    """Refuse to bind something new to a version that was revoked or archived. Raises: InvalidRequest."""
    if version.revoked_at is not None:
        raise InvalidRequest(f"{version.pin} was revoked: name another version.", param, "verifier_revoked")
    if version.archived_at is not None:
        message = f"{version.pin} is archived: nothing new is bound to it. Registering {version.name} again revives it."
        raise InvalidRequest(message, param, "verifier_archived")


def refuse_rivals(pins: Sequence[TaskVerifier]) -> None:
    """Refuse two versions of one verifier that are bound for the same end. Raises: InvalidRequest, naming the entry."""
    for index, pin in enumerate(pins):
        for other in pins[:index]:
            if (other.name, other.mode) == (pin.name, pin.mode) and other.version != pin.version:
                both = f"{other.name}@{other.version} and {pin.name}@{pin.version}"
                message = f"{both} cannot both {pin.mode.value}: give two versions of a verifier different modes."
                raise InvalidRequest(message, param=f"verifiers[{index}]")


async def _find_newest(connection: AsyncConnection, name: str) -> VerifierVersion | None:
    newest = select(verifiers).where(verifiers.c.name == name).order_by(verifiers.c.version.desc()).limit(1)
    row = await fetch_row(connection, newest)
    return VerifierVersion(**row) if row else None


def _says_the_same(known: VerifierVersion, wanted: VerifierVersion) -> bool:
    if known.archived_at is not None or known.revoked_at is not None or known.kind != wanted.kind:
        return False
    if wanted.description not in ("", known.description):
        return False
    given = decode_json(encode_json(wanted.config))  # as it would be read back
    return _deterministic.encode(given) == _deterministic.encode(known.config)
