"""Keeps who is logged in to the dashboard: one row a session, by the hash of its secret.

Called by `server.api.sessions`. A session is worth no more than its key: it is looked up together with it, so that what
is said of the key holds for it.
"""

import time
from dataclasses import dataclass

from sqlalchemy import delete, insert, select

from server.store.database import Database
from server.store.rows import fetch_row
from server.store.tables import api_keys, sessions


@dataclass(frozen=True, slots=True)
class Session:
    """One login. `key_sha256` is by what its key is looked up; times in Unix seconds."""

    sha256: str
    key: str
    key_sha256: str
    created_at: float
    expires_at: float


class SessionStore:
    """The sessions of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, sha256: str, key_id: str, lasts_s: float) -> float:
        """Begin a session, and forget those that are over; say when it ends."""
        now = time.time()
        made = {"sha256": sha256, "key": key_id, "created_at": now, "expires_at": now + lasts_s}
        async with self._database.write() as connection:
            await connection.execute(delete(sessions).where(sessions.c.expires_at <= now))
            await connection.execute(insert(sessions).values(**made))
        return made["expires_at"]

    async def find(self, sha256: str) -> Session | None:
        """Find a session by the hash of its secret, one that is over too: the caller looks at that."""
        joined = select(sessions, api_keys.c.sha256.label("key_sha256")).join(api_keys, api_keys.c.id == sessions.c.key)
        async with self._database.read() as connection:
            row = await fetch_row(connection, joined.where(sessions.c.sha256 == sha256))
        return Session(**row) if row else None

    async def end(self, sha256: str) -> None:
        """End a session; one that is not there has ended."""
        async with self._database.write() as connection:
            await connection.execute(delete(sessions).where(sessions.c.sha256 == sha256))
