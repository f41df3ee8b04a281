"""Withdraws versions of verifiers: archives them, so that nothing new is bound to them, or revokes them.

Called by the API and the command line. A revocation is one transaction: what was bound to the version goes back to the
one before it, and the adapters that learnt from its verdicts are flagged. Neither is ever taken back.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec
from sqlalchemy import Table, Text, cast, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain import BindingMode, TaskVerifier, VerifierVersion
from server.errors import NotFound
from server.store.database import Database
from server.store.rows import clean_values, fetch_row, fetch_rows, to_json
from server.store.tables import adapters, api_keys, events, tasks, verifiers

TRAINED_ON_REVOKED = "trained_on_revoked:"
"""How an adapter's flag begins whose rewards came from a version that was revoked; the pin follows."""


@dataclass(frozen=True, slots=True)
class Archival:
    """What was archived; nothing where `tasks` or `keys` (their ids) still pin it."""

    versions: tuple[VerifierVersion, ...] = ()
    tasks: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()

    @property
    def still_pinned(self) -> bool:
        """Whether it was left as it was, because of these pins."""
        return bool(self.tasks or self.keys)


@dataclass(frozen=True, slots=True)
class Revocation:
    """What a revocation changed: tasks by name, keys by id, adapters by name.

    `former` is what `tasks` and `keys` were put back to. Where there is none, they are in `tasks_left` and `keys_left`:
    they keep the pin, and it abstains.
    """

    verifier: str
    reason: str
    revoked_at: float
    former: str | None = None
    tasks: tuple[str, ...] = ()
    tasks_left: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    keys_left: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()


class Withdrawals:
    """The withdrawing of versions in one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def archive(self, name: str, version: int | None = None, *, actor: str = "") -> Archival:
        """Archive all versions of a verifier, or one; nothing where a task or a living key pins one of them.

        Raises: NotFound.
        """
        now = time.time()
        chosen = [verifiers.c.name == name, *([verifiers.c.version == version] if version is not None else [])]
        async with self._database.write() as connection:
            found = await fetch_rows(connection, select(verifiers.c.version).where(*chosen).with_for_update())
            if not found:
                raise _not_found(name, version)
            numbers = frozenset(row["version"] for row in found)
            pinned = [await _find_pinning(connection, table, name, numbers, now) for table in (tasks, api_keys)]
            if any(pinned):
                return Archival((), *(tuple(str(owner) for owner in owners) for owners in pinned))
            archived_at = func.coalesce(verifiers.c.archived_at, now)
            mark = update(verifiers).where(*chosen).values(archived_at=archived_at).returning(verifiers)
            rows = await fetch_rows(connection, mark)
            versions = sorted((VerifierVersion(**row) for row in rows), key=lambda one: -one.version)
            await _note(connection, "verifier.archived", name, actor, {"versions": [one.version for one in versions]})
        return Archival(tuple(versions))

    async def revoke(self, name: str, version: int, reason: str, *, actor: str = "") -> Revocation:
        """Revoke a version and undo what it is bound to, in one transaction.

        A second time does what is left to do; time and reason stay those of the first.

        Raises: NotFound.
        """
        pin = f"{name}@{version}"
        async with self._database.write() as connection:
            row = await fetch_row(connection, _mark_revoked(name, version, reason))
            if row is None:
                raise _not_found(name, version)
            former = await _find_former(connection, name, version)
            moved = [await _put_back(connection, table, name, version, former) for table in (tasks, api_keys)]
            flagged = await _flag_adapters(connection, pin)
            went, left = (moved, [(), ()]) if former is not None else ([(), ()], moved)
            revocation = Revocation(
                verifier=pin,
                reason=row["revoked_reason"],
                revoked_at=row["revoked_at"],
                former=None if former is None else f"{name}@{former}",
                tasks=went[0],
                tasks_left=left[0],
                keys=went[1],
                keys_left=left[1],
                adapters=flagged,
            )
            details = {key: value for key, value in asdict(revocation).items() if key not in ("verifier", "revoked_at")}
            await _note(connection, "verifier.revoked", pin, actor, details)
        return revocation


def _not_found(name: str, version: int | None) -> NotFound:
    wanted = name if version is None else f"{name}@{version}"
    return NotFound(f"There is no verifier {wanted!r}.", code="verifier_not_found")


def _mark_revoked(name: str, version: int, reason: str) -> Any:
    cleaned = clean_values({"reason": reason})["reason"]
    return (
        update(verifiers)
        .where(verifiers.c.name == name, verifiers.c.version == version)
        .values(
            revoked_at=func.coalesce(verifiers.c.revoked_at, time.time()),
            revoked_reason=func.coalesce(func.nullif(verifiers.c.revoked_reason, ""), cleaned),
        )
        .returning(verifiers)
    )


async def _find_former(connection: AsyncConnection, name: str, version: int) -> int | None:
    """Find the newest version before this one that may still be bound."""
    former = (
        select(func.max(verifiers.c.version).label("version"))
        .where(verifiers.c.name == name, verifiers.c.version < version)
        .where(verifiers.c.archived_at.is_(None), verifiers.c.revoked_at.is_(None))
    )
    row = await fetch_row(connection, former)
    return row["version"] if row else None


async def _fetch_pinning(connection: AsyncConnection, table: Table, name: str) -> list[tuple[Any, list[TaskVerifier]]]:
    """Fetch, to be changed, the primary keys of tasks or keys with pins, and their pins. Revoked keys are left out."""
    statement = select(*table.primary_key.columns, table.c.verifiers).order_by(*table.primary_key.columns)
    statement = statement.where(cast(table.c.verifiers, Text).contains(f'"{name}"', autoescape=True))
    if table is api_keys:
        statement = statement.where(api_keys.c.revoked_at.is_(None))
    rows = await fetch_rows(connection, statement.with_for_update())
    (owner,) = table.primary_key.columns.keys()
    return [(row[owner], msgspec.convert(row["verifiers"], list[TaskVerifier])) for row in rows]


async def _find_pinning(
    connection: AsyncConnection, table: Table, name: str, versions: frozenset[int], now: float
) -> list[Any]:
    found = await _fetch_pinning(connection, table, name)
    owners = [owner for owner, pins in found if any(pin.name == name and pin.version in versions for pin in pins)]
    if table is api_keys and owners:  # an expired key binds nothing any more
        alive = or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now)
        living = select(api_keys.c.id).where(api_keys.c.id.in_(owners), alive).order_by(api_keys.c.id)
        owners = [row["id"] for row in await fetch_rows(connection, living)]
    return owners


async def _put_back(
    connection: AsyncConnection, table: Table, name: str, version: int, former: int | None
) -> tuple[str, ...]:
    """Pin the former version where this one is pinned, and name where; without a former one only name."""
    moved = []
    (owner_column,) = table.primary_key.columns
    for owner, pins in await _fetch_pinning(connection, table, name):
        if not any(pin.name == name and pin.version == version for pin in pins):
            continue
        moved.append(str(owner))
        if former is not None:
            after = put_back(pins, name, version, former)
            values = {"verifiers": to_json(after)}
            await connection.execute(update(table).where(owner_column == owner).values(**values))
    return tuple(moved)


def put_back(pins: Sequence[TaskVerifier], name: str, version: int, former: int) -> list[TaskVerifier]:
    """Replace a version by the former one; what would only watch beside its own like, or stand twice, is dropped."""
    moved = [replace(pin, version=former) if (pin.name, pin.version) == (name, version) else pin for pin in pins]
    enforced = any((pin.name, pin.version, pin.mode) == (name, former, BindingMode.ENFORCE) for pin in moved)
    after: list[TaskVerifier] = []
    for pin in moved:
        watches_its_like = enforced and pin.mode != BindingMode.ENFORCE and (pin.name, pin.version) == (name, former)
        if not watches_its_like and not (pin.name == name and pin in after):
            after.append(pin)
    return after


async def _flag_adapters(connection: AsyncConnection, pin: str) -> tuple[str, ...]:
    """Flag what was trained on the version's verdicts, and what was trained on from there."""
    flag, flagged = TRAINED_ON_REVOKED + pin, []
    columns = (adapters.c.name, adapters.c.parent, adapters.c.verifiers, adapters.c.flags)
    while True:  # again until nothing is left: another transaction may have added one while this one waited
        rows = await fetch_rows(connection, select(*columns).order_by(adapters.c.name))
        tainted = _find_tainted(rows, pin)
        new = [row for row in rows if row["name"] in tainted and flag not in row["flags"]]
        for row in new:
            values = {"flags": [*row["flags"], flag]}
            await connection.execute(update(adapters).where(adapters.c.name == row["name"]).values(**values))
            flagged.append(row["name"])
        if not new:
            return tuple(sorted(flagged))


def _find_tainted(rows: Sequence[Mapping[str, Any]], pin: str) -> set[str]:
    tainted = {row["name"] for row in rows if pin in row["verifiers"]}
    while more := {row["name"] for row in rows if row["parent"] in tainted} - tainted:
        tainted |= more
    return tainted


async def _note(connection: AsyncConnection, kind: str, subject: str, actor: str, details: Mapping[str, Any]) -> None:
    values = clean_values({"kind": kind, "subject": subject, "actor": actor, "created_at": time.time()})
    await connection.execute(insert(events).values(**values, details=to_json(details)))
