"""Keeps the API keys: their SHA-256, never the secret. Called by the API's authentication and by the command line."""

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func, insert, select, update

from server.domain import ApiKey, new_id
from server.errors import NotFound
from server.store.database import Database
from server.store.rows import clean_values, fetch_row, fetch_rows
from server.store.tables import api_keys

PREFIX = "mk-"
SECRET_BYTES = 32


def digest_secret(secret: str) -> str:
    """Hash a secret as it is stored: SHA-256, hexadecimal. It has 256 random bits, so no slower hash is needed."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


class KeyStore:
    """The API keys of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, name: str, scopes: Sequence[str]) -> tuple[str, ApiKey]:
        """Make a key. The secret is returned here and never again."""
        secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        key = ApiKey(new_id("key"), name, digest_secret(secret), tuple(scopes), time.time())
        values = {
            "id": key.id,
            "name": key.name,
            "sha256": key.sha256,
            "scopes": [*key.scopes],
            "created_at": key.created_at,
        }
        async with self._database.write() as connection:
            await connection.execute(insert(api_keys).values(**clean_values(values)))
        return secret, key

    async def by_sha256(self, digest: str) -> ApiKey | None:
        """Find a key by the digest of its secret, a revoked one too: the caller looks at `revoked_at`."""
        async with self._database.read() as connection:
            row = await fetch_row(connection, select(api_keys).where(api_keys.c.sha256 == digest))
        return _decode(row) if row else None

    async def list(self) -> list[ApiKey]:
        """List all keys, revoked ones too, oldest first."""
        async with self._database.read() as connection:
            rows = await fetch_rows(connection, select(api_keys).order_by(api_keys.c.id))
        return [_decode(row) for row in rows]

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


def _decode(row: Mapping[str, Any]) -> ApiKey:
    return ApiKey(**{**row, "scopes": tuple(row["scopes"])})
