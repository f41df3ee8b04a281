"""Reads the episodes that the log wrote. Called by the API, the export and the trainer; it never writes."""

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence

from sqlalchemy import Select, Table, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain import Attempt, Episode, Outcome, Reflection
from server.store.database import Database
from server.store.episode_rows import decode_attempt, decode_episode, decode_reflection
from server.store.rows import Row, fetch_one, fetch_rows
from server.store.tables import attempts, episodes, reflections

TRAINING, HELD_OUT = "training", "held_out"
VERIFIED = (Outcome.PASSED.value, Outcome.RECOVERED.value, Outcome.EXHAUSTED.value)
FAILED_FIRST = (Outcome.RECOVERED.value, Outcome.EXHAUSTED.value)  # in the order in which training wants them
HEAVY = frozenset({"prompt_ids", "token_ids", "logprobs"})
PARENTS = 500  # episodes whose attempts and reflections are fetched together


class EpisodeStore:
    """The episodes of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, episode_id: str) -> Episode | None:
        """Find an episode by its id, with everything."""
        async with self._database.read() as connection:
            found = await _fetch(connection, select(episodes).where(episodes.c.id == episode_id), heavy=True)
        return found[0] if found else None

    async def iterate(self, *, task: str | None = None, batch: int = 500) -> AsyncIterator[Episode]:
        """Go through all episodes, oldest first, with everything. No transaction is held between batches."""
        after = ""
        while True:
            statement = select(episodes).where(episodes.c.id > after).order_by(episodes.c.id).limit(batch)
            if task is not None:
                statement = statement.where(episodes.c.task == task)
            async with self._database.read() as connection:
                found = await _fetch(connection, statement, heavy=True)
            for episode in found:
                yield episode
            if len(found) < batch:
                return
            after = found[-1].id

    async def failures(self, task: str, *, since: float = 0, limit: int) -> list[Episode]:
        """Find what can be trained on: episodes of the training split, with content, whose first attempt failed.

        Never those of a key that opted out of training. Those that a reflection rescued come first, then the exhausted
        ones, each newest first; with token arrays. `since`: only those made after this time.
        """
        found: list[Episode] = []
        async with self._database.read() as connection:
            for outcome in FAILED_FIRST:
                newest_first = (
                    _failures(task, since)
                    .where(episodes.c.outcome == outcome)
                    .order_by(episodes.c.created_at.desc(), episodes.c.id.desc())
                    .limit(limit - len(found))
                )
                if len(found) < limit:
                    found += await _fetch(connection, newest_first, heavy=True)
        return found

    async def count_failures(self, task: str, *, since: float = 0) -> int:
        """Count what `failures` would find without a limit."""
        statement = _failures(task, since).where(episodes.c.outcome.in_(FAILED_FIRST))
        return await self._count(statement)

    async def held_out(self, task: str, *, limit: int) -> list[Episode]:
        """Find problems for the gate: verified episodes of the held-out split, with content, without token arrays.

        Those of a key that opted out of training are not asked again either. The newest problems come first. Of the
        episodes that asked the same (messages, tools and verifier arguments; how it was sampled does not matter) only
        the newest is there.
        """
        newest = (
            select(func.max(episodes.c.id).label("id"))
            .where(
                episodes.c.task == task,
                episodes.c.split == HELD_OUT,
                episodes.c.store.is_(True),
                episodes.c.trains.is_(True),
                episodes.c.outcome.in_(VERIFIED),
            )
            .group_by(episodes.c.problem)
            .order_by(func.max(episodes.c.id).desc())
            .limit(limit)
            .subquery()
        )
        statement = select(episodes).join(newest, episodes.c.id == newest.c.id).order_by(episodes.c.id.desc())
        async with self._database.read() as connection:
            return await _fetch(connection, statement, heavy=False)

    async def count(
        self, *, task: str | None = None, outcome: str | None = None, key: str | None = None, since: float = 0
    ) -> int:
        """Count episodes, all or those that match."""
        statement = _matching(task, outcome, key)
        if since:
            statement = statement.where(episodes.c.created_at > since)
        return await self._count(statement)

    async def _count(self, statement: Select) -> int:
        counting = statement.with_only_columns(func.count().label("count"), maintain_column_froms=True)
        async with self._database.read() as connection:
            return (await fetch_one(connection, counting))["count"]

    async def list(
        self,
        *,
        task: str | None = None,
        outcome: str | None = None,
        key: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> list[Episode]:
        """List episodes, newest first, without token arrays; `before`: the id of the last one of the page before."""
        statement = _matching(task, outcome, key).order_by(episodes.c.id.desc()).limit(limit)
        if before is not None:
            statement = statement.where(episodes.c.id < before)
        async with self._database.read() as connection:
            return await _fetch(connection, statement, heavy=False)


def _matching(task: str | None, outcome: str | None, key: str | None) -> Select:
    statement = select(episodes)
    for column, value in ((episodes.c.task, task), (episodes.c.outcome, outcome), (episodes.c.key, key)):
        if value is not None:
            statement = statement.where(column == str(value))
    return statement


def _failures(task: str, since: float) -> Select:
    return select(episodes).where(
        episodes.c.task == task,
        episodes.c.split == TRAINING,
        episodes.c.store.is_(True),
        episodes.c.trains.is_(True),
        episodes.c.created_at > since,
    )


async def _fetch(connection: AsyncConnection, statement: Select, *, heavy: bool) -> list[Episode]:
    """Fetch the episodes of a statement, in its order, with their attempts and reflections."""
    rows = await fetch_rows(connection, statement)
    ids = [row["id"] for row in rows]
    tries: dict[str, list[Attempt]] = defaultdict(list)
    for row in await _fetch_parts(connection, attempts, ids, heavy=heavy):
        tries[row["episode_id"]].append(decode_attempt(row))
    thoughts: dict[str, list[Reflection]] = defaultdict(list)
    for row in await _fetch_parts(connection, reflections, ids, heavy=heavy):
        thoughts[row["episode_id"]].append(decode_reflection(row))
    return [decode_episode(row, tries[row["id"]], thoughts[row["id"]]) for row in rows]


async def _fetch_parts(connection: AsyncConnection, table: Table, ids: Sequence[str], *, heavy: bool) -> list[Row]:
    """Fetch the rows of `attempts` or `reflections` that belong to these episodes, in the order of their numbers."""
    columns = [column for column in table.columns if heavy or column.name not in HEAVY]
    found: list[Row] = []
    for start in range(0, len(ids), PARENTS):
        belong = table.c.episode_id.in_(ids[start : start + PARENTS])
        found += await fetch_rows(connection, select(*columns).where(belong).order_by(*table.primary_key.columns))
    return found
