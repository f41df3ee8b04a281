"""Keeps the API keys: their SHA-256, never the secret. Called by the API's authentication and by the command line."""

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain import DEFAULT_SCOPES, ApiKey, BindingMode, KeyLimits, Role, Scope, TaskVerifier, new_id
from server.errors import Conflict, InvalidRequest, NotFound
from server.store.database import Database
from server.store.rows import clean_values, fetch_row, fetch_rows, to_json
from server.store.tables import api_keys, tasks

PREFIX = "mk-"
SECRET_BYTES = 32
PERIODS = ("total", "day", "month")
BIGGEST_LIMIT = 2**31 - 1
BIGGEST_BUDGET = 2**53 - 1  # what every client of JSON can still count to
CHANGEABLE = frozenset({"name", "scopes", "tasks", "limits", "trains", "expires_at", "verifiers"})
END_OF_TIME = 253_402_300_800.0  # the year 10000: what dates can say ends there
NOTED_EVERY_S = 60.0
"""How old `last_used_at` may be before a later use is written."""


def digest_secret(secret: str) -> str:
    """Hash a secret as it is stored: SHA-256, hexadecimal. It has 256 random bits, so no slower hash is needed."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


class KeyStore:
    """The API keys of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self,
        name: str,
        role: str = Role.CLIENT,
        *,
        scopes: Sequence[str] | None = None,
        tasks: Sequence[str] = (),
        limits: KeyLimits | None = None,
        trains: bool = True,
        expires_at: float | None = None,
        verifiers: Sequence[TaskVerifier] = (),
    ) -> tuple[str, ApiKey]:
        """Make a key. The secret is returned here and never again. `scopes` None: those that the role begins with.

        Raises: InvalidRequest, naming the field, for what is unknown or does not go together.
        """
        given, limits = check_scopes(role, scopes), limits or KeyLimits()
        check_limits(role, limits)
        check_expiry(expires_at)
        check_verifiers(role, verifiers)
        secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        key = ApiKey(
            new_id("key"), name, digest_secret(secret), Role(role), given, tuple(dict.fromkeys(tasks)), limits,
            trains=trains, created_at=time.time(), expires_at=expires_at, verifiers=tuple(verifiers),
        )  # fmt: skip
        async with self._database.write() as connection:
            await _check_tasks(connection, key)
            await connection.execute(insert(api_keys).values(**clean_values(_encode(key))))
        return secret, key

    async def update(self, key_id: str, **changes: Any) -> ApiKey:
        """Change a key's `name`, `scopes`, `tasks`, `limits`, `trains`, `expires_at` or `verifiers`; never its role.

        Of `limits` (a mapping) only what is in it changes.

        Raises: NotFound; Conflict for a revoked key; InvalidRequest, naming the field, for what does not go together;
        TypeError for any other field.
        """
        if unknown := set(changes) - CHANGEABLE:
            raise TypeError(f"not fields of a key that may be changed: {', '.join(sorted(unknown))}")
        async with self._database.write() as connection:
            row = await fetch_row(connection, select(api_keys).where(api_keys.c.id == key_id).with_for_update())
            if row is None:
                raise NotFound(f"There is no key {key_id!r}")
            key = _decode(row)
            if key.revoked_at is not None:
                raise Conflict(f"The key {key_id!r} is revoked: make another.")
            key = _change(key, changes)
            await _check_tasks(connection, key)
            values = {name: value for name, value in _encode(key).items() if name in changes}
            if values:
                await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(**clean_values(values)))
        return key

    async def get(self, key_id: str) -> ApiKey | None:
        """Find a key by its id, a revoked or expired one too."""
        async with self._database.read() as connection:
            row = await fetch_row(connection, select(api_keys).where(api_keys.c.id == key_id))
        return _decode(row) if row else None

    async def by_sha256(self, digest: str) -> ApiKey | None:
        """Find a key by the digest of its secret, a revoked or expired one too: the caller looks at that."""
        async with self._database.read() as connection:
            row = await fetch_row(connection, select(api_keys).where(api_keys.c.sha256 == digest))
        return _decode(row) if row else None

    async def list(self) -> list[ApiKey]:
        """List all keys, revoked ones too, oldest first."""
        async with self._database.read() as connection:
            rows = await fetch_rows(connection, select(api_keys).order_by(api_keys.c.id))
        return [_decode(row) for row in rows]

    async def note_uses(self, uses: Mapping[str, float]) -> None:
        """Write when keys, by id, were last used, where what is written is a minute old."""
        async with self._database.write() as connection:
            for key_id, used_at in sorted(uses.items()):
                written = func.coalesce(api_keys.c.last_used_at, 0.0)
                await connection.execute(
                    update(api_keys)
                    .where(api_keys.c.id == key_id, written <= used_at - NOTED_EVERY_S)
                    .values(last_used_at=used_at)
                )

    async def revoke(self, key_id: str) -> ApiKey:
        """End a key; the time of the first revocation stays. Raises: NotFound."""
        async with self._database.write() as connection:
            row = await fetch_row(
                connection,
                update(api_keys)
                .where(api_keys.c.id == key_id)
                .values(revoked_at=func.coalesce(api_keys.c.revoked_at, time.time()))
                .returning(api_keys),
            )
        if row is None:
            raise NotFound(f"There is no key {key_id!r}")
        return _decode(row)


def check_scopes(role: str, scopes: Sequence[str] | None) -> tuple[str, ...]:
    """Say which scopes a key of a role gets, given those that were asked for. Raises: InvalidRequest."""
    if role not in set(Role):
        raise InvalidRequest(f"There is no role {role!r}, only {', '.join(Role)}.", param="role")
    if scopes is None:
        return tuple(str(scope) for scope in DEFAULT_SCOPES) if role == Role.CLIENT else ()
    if unknown := [scope for scope in scopes if scope not in set(Scope)]:
        raise InvalidRequest(f"There is no scope {unknown[0]!r}, only {', '.join(Scope)}.", param="scopes")
    if scopes and role != Role.CLIENT:
        raise InvalidRequest(f"Scopes are for client keys; the role {str(role)!r} says all.", param="scopes")
    return tuple(str(scope) for scope in dict.fromkeys(scopes))


def check_limits(role: str, limits: KeyLimits) -> None:
    """Refuse limits that make no sense. Raises: InvalidRequest."""
    most = {
        "requests_per_minute": BIGGEST_LIMIT,
        "tokens_per_minute": BIGGEST_LIMIT,
        "max_concurrent": BIGGEST_LIMIT,
        "token_budget": BIGGEST_BUDGET,
    }
    for name, biggest in most.items():
        value = getattr(limits, name)
        if value is not None and not 1 <= value <= biggest:
            raise InvalidRequest(f"{name} is from 1 to {biggest}; leave it out for none.", param=f"limits.{name}")
    if limits.budget_period not in PERIODS:
        raise InvalidRequest(f"A budget is one of {', '.join(PERIODS)}.", param="limits.budget_period")
    if limits.budget_period != "total" and limits.token_budget is None:
        raise InvalidRequest("A budget's period needs a token_budget.", param="limits.budget_period")
    if limits.any and role in (Role.VIEWER, Role.APPROVER):
        raise InvalidRequest(f"The role {str(role)!r} runs nothing that could be limited.", param="limits")


def check_expiry(expires_at: float | None) -> None:
    """Refuse an end that is over, or that no date can say. Raises: InvalidRequest."""
    if expires_at is not None and not time.time() < expires_at < END_OF_TIME:
        raise InvalidRequest("A key expires after now and before the year 10000.", param="expires_at")


def check_verifiers(role: str, verifiers: Sequence[TaskVerifier]) -> None:
    """Refuse verifiers of a key that would check nothing. Raises: InvalidRequest."""
    if verifiers and role in (Role.VIEWER, Role.APPROVER):
        raise InvalidRequest(f"The role {str(role)!r} runs nothing that could be verified.", param="verifiers")
    if any(pin.mode != BindingMode.ENFORCE for pin in verifiers):
        message = "A key's verifiers enforce; those that observe or audit belong to a task."
        raise InvalidRequest(message, param="verifiers")


def _change(key: ApiKey, changes: Mapping[str, Any]) -> ApiKey:
    changed = dict(changes)
    if "scopes" in changed:
        changed["scopes"] = check_scopes(key.role, changed["scopes"])
    if "tasks" in changed:
        changed["tasks"] = tuple(dict.fromkeys(changed["tasks"]))
    if "limits" in changed:
        changed["limits"] = replace(key.limits, **changed["limits"])
        check_limits(key.role, changed["limits"])
    if "expires_at" in changed:
        check_expiry(changed["expires_at"])
    if "verifiers" in changed:
        changed["verifiers"] = tuple(changed["verifiers"])
        check_verifiers(key.role, changed["verifiers"])
    return replace(key, **changed)


async def _check_tasks(connection: AsyncConnection, key: ApiKey) -> None:
    if key.tasks and key.role is not Role.CLIENT:
        raise InvalidRequest(f"Tasks are for client keys; the role {str(key.role)!r} sees them all.", param="tasks")
    known = {row["name"] for row in await fetch_rows(connection, select(tasks.c.name))} if key.tasks else set()
    if missing := [name for name in key.tasks if name not in known]:
        raise InvalidRequest(f"There is no task {missing[0]!r}.", param="tasks", code="task_not_found")


def _encode(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "sha256": key.sha256,
        "role": str(key.role),
        "scopes": [*key.scopes],
        "tasks": [*key.tasks],
        "limits": to_json(key.limits),
        "trains": key.trains,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "verifiers": to_json(key.verifiers),
    }


def _decode(row: Mapping[str, Any]) -> ApiKey:
    made = {
        "role": Role(row["role"]),
        "scopes": tuple(row["scopes"]),
        "tasks": tuple(row["tasks"]),
        "limits": msgspec.convert(row["limits"], KeyLimits),
        "verifiers": msgspec.convert(row["verifiers"], tuple[TaskVerifier, ...]),
    }
    return ApiKey(**{**row, **made})
