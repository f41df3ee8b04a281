"""Chooses the episodes of an export and goes through them, oldest first, a few at a time. For the command line."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from sqlalchemy import Select, and_, func, or_, select

from server.domain import Episode
from server.store.database import Database
from server.store.episode_rows import hash_user
from server.store.episodes import EpisodeStore
from server.store.rows import fetch_one
from server.store.tables import episodes

AT_ONCE = 50
"""Episodes in memory together: one may have megabytes."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which episodes: all of what is given. Times are Unix seconds, the upper one left out; None and 0: no matter."""

    task: str | None = None
    outcome: str | None = None
    adapter: str | None = None
    key: str | None = None
    user: str | None = None
    since: float = 0.0
    until: float = 0.0

    def narrow(self, statement: Select) -> Select:
        """Narrow a statement on `episodes`."""
        for name in ("task", "outcome", "adapter", "key"):
            if (value := getattr(self, name)) is not None:
                statement = statement.where(episodes.c[name] == str(value))
        if self.since:
            statement = statement.where(episodes.c.created_at >= self.since)
        if self.until:
            statement = statement.where(episodes.c.created_at < self.until)
        return statement if self.user is None else statement.where(_names(self.user))


def _names(user: str):  # noqa: ANN202 - a condition
    """Say that a request names somebody; in rows of a release that kept no hashes, by the request itself."""
    hashed = hash_user(user)
    said = [episodes.c.request[name].as_string() == user for name in ("user", "safety_identifier")]
    return or_(
        episodes.c.user_hash == hashed,
        episodes.c.safety_hash == hashed,
        and_(episodes.c.user_hash.is_(None), or_(*said)),
    )


async def count_wanted(database: Database, wanted: Wanted) -> tuple[int, str]:
    """Count what an export would have now, and find its newest id."""
    chosen = wanted.narrow(select(episodes.c.id)).subquery()
    counting = select(func.count().label("count"), func.coalesce(func.max(chosen.c.id), "").label("newest"))
    async with database.read() as connection:
        row = await fetch_one(connection, counting.select_from(chosen))
    return row["count"], row["newest"]


def iterate_wanted(database: Database, wanted: Wanted, newest: str) -> AsyncIterator[Episode]:
    """Go through what is wanted up to the id `newest`: what is logged meanwhile is not in it."""

    def narrow(statement: Select) -> Select:
        return wanted.narrow(statement).where(episodes.c.id <= newest)

    return EpisodeStore(database).iterate(narrow=narrow, batch=AT_ONCE)
