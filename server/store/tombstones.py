"""What was deleted and may not come back: tombstones, heeded by the log's writers and by the spool's replay.

A writer knows the tombstones up to some number; each of its transactions proves, before it commits, that there are no
newer ones. A deletion first makes sure that no writer is in the middle of a transaction, then writes its tombstone: so
an episode is either committed before, where the deletion finds it, or looked at under the tombstone. Pure but for
`fetch_tombstones`; it must never hold what a client wrote, only hashes and ids.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from server.store.database import Database
from server.store.episode_rows import COLUMNS, EpisodeRows
from server.store.rows import fetch_rows
from server.store.tables import deletions

NEWEST = "SELECT coalesce(max(number), 0) FROM deletions"
"""What a writer asks before it commits."""

_ID, _KEY, _CREATED_AT = (COLUMNS[0].index(name) for name in ("id", "key", "created_at"))
_USERS = tuple(COLUMNS[0].index(name) for name in ("user_hash", "safety_hash"))


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Episodes that are all of what is named, and began no later than `until_at` (Unix seconds), are deleted."""

    user_hash: str
    key: str
    episode: str
    until_at: float

    def covers(self, *, id: str, key: str, users: Sequence[str], created_at: float) -> bool:  # noqa: A002
        """Say whether it covers an episode. `users` are its two hashes."""
        return (
            created_at <= self.until_at
            and self.episode in ("", id)
            and self.key in ("", key)
            and (not self.user_hash or self.user_hash in users)
        )


class Tombstones:
    """The tombstones that one writer knows: those up to the number `newest`."""

    def __init__(self, newest: int = 0, found: Iterable[Tombstone] = ()) -> None:
        self.newest = newest
        self._by_name: dict[str, list[Tombstone]] = defaultdict(list)
        for one in found:
            self._by_name[one.episode or one.user_hash or one.key].append(one)

    def keep(self, batch: Sequence[EpisodeRows]) -> Sequence[EpisodeRows]:
        """Leave out what is deleted."""
        if not self._by_name:
            return batch
        return [record for record in batch if not self.covers(record)]

    def covers(self, record: EpisodeRows) -> bool:
        """Say whether an episode is deleted."""
        row = record.episode
        users = tuple(row[place] or "" for place in _USERS)
        names = {row[_ID], row[_KEY], *users, ""}  # "" narrows by nothing
        return any(
            one.covers(id=row[_ID], key=row[_KEY], users=users, created_at=row[_CREATED_AT])
            for name in names
            for one in self._by_name.get(name, ())
        )


async def fetch_tombstones(database: Database) -> Tombstones:
    """Fetch them all. Raises: StoreUnavailable."""
    columns = (deletions.c.user_hash, deletions.c.key, deletions.c.episode, deletions.c.until_at)
    statement = select(deletions.c.number, *columns).order_by(deletions.c.number)
    async with database.read() as connection:
        rows = await fetch_rows(connection, statement)
    newest = rows[-1]["number"] if rows else 0
    return Tombstones(newest, [_read_tombstone(row) for row in rows])


def _read_tombstone(row: Mapping[str, Any]) -> Tombstone:
    return Tombstone(row["user_hash"], row["key"], row["episode"], row["until_at"])
