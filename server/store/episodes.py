"""Reads the episodes that the log wrote. Called by the API, the export and the trainer; it never writes."""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Select, Table, exists, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain import Attempt, Episode, Feedback, Outcome, Reflection
from server.store.cleaning import clean_text
from server.store.database import Database
from server.store.episode_rows import decode_attempt, decode_episode, decode_reflection
from server.store.feedback import fetch_feedback
from server.store.left_out import count_left_out
from server.store.newest import newest_first
from server.store.problems import find_problems
from server.store.rows import Row, fetch_one, fetch_row, fetch_rows
from server.store.tables import attempts, episodes, feedback, reflections

TRAINING, HELD_OUT = "training", "held_out"
VERIFIED = (Outcome.PASSED.value, Outcome.RECOVERED.value, Outcome.EXHAUSTED.value)
FAILED_FIRST = (Outcome.RECOVERED.value, Outcome.EXHAUSTED.value)  # in the order in which training wants them
HEAVY = frozenset({"prompt_ids", "token_ids", "logprobs"})
PARENTS = 500  # episodes whose attempts and reflections are fetched together
PASSED, FAILED, NONE = "passed", "failed", "none"  # what episodes can be sought by that have feedback, or have none


@dataclass(frozen=True, slots=True)
class Owner:
    """The task that an episode belongs to, the id of the key that asked, and whether the content may be kept."""

    task: str
    key: str
    store: bool


class EpisodeStore:
    """The episodes of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, episode_id: str) -> Episode | None:
        """Find an episode by its id, with everything."""
        async with self._database.read() as connection:
            found = await _fetch(connection, select(episodes).where(episodes.c.id == episode_id), heavy=True)
        return found[0] if found else None

    async def find_owner(self, episode_id: str) -> Owner | None:
        """Find whose an episode is, without reading the rest of it."""
        statement = select(episodes.c.task, episodes.c.key, episodes.c.store)
        statement = statement.where(episodes.c.id == clean_text(episode_id))
        async with self._database.read() as connection:
            row = await fetch_row(connection, statement)
        return Owner(**row) if row else None

    async def iterate(
        self, *, task: str | None = None, batch: int = 500, narrow: Callable[[Select], Select] | None = None
    ) -> AsyncIterator[Episode]:
        """Go through all episodes, oldest first, with everything. No transaction is held between batches."""
        after = ""
        while True:
            statement = select(episodes).where(episodes.c.id > after).order_by(episodes.c.id).limit(batch)
            if task is not None:
                statement = statement.where(episodes.c.task == task)
            if narrow is not None:
                statement = narrow(statement)
            async with self._database.read() as connection:
                found = await _fetch(connection, statement, heavy=True)
            for episode in found:
                yield episode
            if len(found) < batch:
                return
            after = found[-1].id

    async def failures(self, task: str, *, since: float = 0, until: float | None = None, limit: int) -> list[Episode]:
        """Find what can be trained on: episodes of the training split, with content, whose first attempt failed.

        Never those of a key that opted out of training. Those that a reflection rescued come first, then the exhausted
        ones, each newest first; with token arrays. `since`: only those made after this time, `until`: up to this one.
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
                if until is not None:
                    newest_first = newest_first.where(episodes.c.created_at <= until)
                if len(found) < limit:
                    found += await _fetch(connection, newest_first, heavy=True)
        return found

    async def count_left_out(self, task: str, *, since: float = 0) -> dict[str, int]:
        """Count what `failures` passes over for what the log says of it, by the reason; see `server.store.left_out`."""
        async with self._database.read() as connection:
            return await count_left_out(connection, task, since)

    async def count_failures(self, task: str, *, since: float = 0, most: int | None = None) -> int:
        """Count what `failures` would find without a limit; up to `most`, where it is given."""
        async with self._database.read() as connection:
            return await count_failures(connection, task, since=since, most=most)

    async def held_out(self, task: str, *, limit: int) -> list[Episode]:
        """Find problems for the gate: verified episodes of the held-out split, with content, without token arrays.

        Those of a key that opted out of training are not asked again either. The newest problems come first. Of the
        episodes that asked the same (messages, tools and verifier arguments; how it was sampled does not matter) only
        the newest is there.
        """
        async with self._database.read() as connection:
            ids = await find_problems(connection, task, limit=limit)
            found: list[Episode] = []
            for start in range(0, len(ids), PARENTS):
                some = select(episodes).where(episodes.c.id.in_(ids[start : start + PARENTS]))
                found += await _fetch(connection, some.order_by(episodes.c.id.desc()), heavy=False)
            return found

    async def count(
        self, *, task: str | None = None, outcome: str | None = None, key: str | None = None, since: float = 0
    ) -> int:
        """Count episodes, all or those that match."""
        statement = _matching(task, outcome, key)
        if since:
            statement = statement.where(episodes.c.created_at > since)
        return await self._count(statement)

    async def count_outcomes(self, adapter: str, *, most: int = 2000) -> dict[str, int]:
        """Count how the newest episodes that an adapter served ended, `most` of them at most, by their outcome."""
        some = newest_first(select(episodes.c.outcome), episodes.c.adapter, adapter).limit(most).subquery()
        counting = select(some.c.outcome, func.count().label("count")).group_by(some.c.outcome)
        async with self._database.read() as connection:
            return {row["outcome"]: row["count"] for row in await fetch_rows(connection, counting)}

    async def _count(self, statement: Select) -> int:
        some = statement.with_only_columns(episodes.c.id, maintain_column_froms=True).subquery()
        counting = select(func.count().label("count")).select_from(some)
        async with self._database.read() as connection:
            return (await fetch_one(connection, counting))["count"]

    async def list(
        self,
        *,
        task: str | None = None,
        outcome: str | None = None,
        key: str | None = None,
        said: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> list[Episode]:
        """List episodes, newest first, without token arrays; `before`: the id of the last one of the page before.

        `said`: only those that some feedback calls `passed`, or `failed`, or those that have `none`.
        """
        statement = _list_newest(task, outcome, key).limit(limit)
        if before is not None:
            statement = statement.where(episodes.c.id < before)
        if said is not None:
            statement = _with_feedback(statement, said, before)
        async with self._database.read() as connection:
            return await _fetch(connection, statement, heavy=False)


def _matching(task: str | None, outcome: str | None, key: str | None) -> Select:
    statement = select(episodes)
    for column, value in ((episodes.c.task, task), (episodes.c.outcome, outcome), (episodes.c.key, key)):
        if value is not None:
            statement = statement.where(column == str(value))
    return statement


def _list_newest(task: str | None, outcome: str | None, key: str | None) -> Select:
    """Make the list of what matches, newest first. Of two filters the database knows which one narrows it more."""
    given = [
        (column, value)
        for column, value in ((episodes.c.key, key), (episodes.c.task, task), (episodes.c.outcome, outcome))
        if value is not None
    ]
    if len(given) == 1:
        return newest_first(select(episodes), given[0][0], str(given[0][1]))
    return _matching(task, outcome, key).order_by(episodes.c.id.desc())


def _with_feedback(statement: Select, said: str, before: str | None) -> Select:
    """Leave only what has such feedback. Few episodes have any, so those with some are found from there."""
    if said == NONE:
        return statement.where(~exists().where(feedback.c.episode_id == episodes.c.id))
    told = select(feedback.c.episode_id).where(feedback.c.passed.is_(said == PASSED)).distinct()
    if before is not None:
        told = told.where(feedback.c.episode_id < before)
    found = told.subquery("told")
    return statement.join(found, episodes.c.id == found.c.episode_id)


async def count_failures(connection: AsyncConnection, task: str, *, since: float, most: int | None) -> int:
    """Count the failures that may be trained on, made after `since`, up to `most`.

    The newest first of each outcome, though it is only counting: so the index of failures is read, and no more of it.
    """
    count = 0
    for outcome in FAILED_FIRST:
        failed = _failures(task, since).where(episodes.c.outcome == outcome).order_by(episodes.c.created_at.desc())
        left = None if most is None else most - count
        some = failed.with_only_columns(episodes.c.id).limit(left).subquery()
        count += (await fetch_one(connection, select(func.count().label("count")).select_from(some)))["count"]
    return count


def _failures(task: str, since: float) -> Select:
    return select(episodes).where(
        episodes.c.task == task,
        episodes.c.split == TRAINING,
        episodes.c.store.is_(True),
        episodes.c.trains.is_(True),
        episodes.c.created_at > since,
    )


async def _fetch(connection: AsyncConnection, statement: Select, *, heavy: bool) -> list[Episode]:
    """Fetch the episodes of a statement, in its order, with their attempts, their reflections and their feedback."""
    rows = await fetch_rows(connection, statement)
    ids = [row["id"] for row in rows]
    tries: dict[str, list[Attempt]] = defaultdict(list)
    for row in await _fetch_parts(connection, attempts, ids, heavy=heavy):
        tries[row["episode_id"]].append(decode_attempt(row))
    thoughts: dict[str, list[Reflection]] = defaultdict(list)
    for row in await _fetch_parts(connection, reflections, ids, heavy=heavy):
        thoughts[row["episode_id"]].append(decode_reflection(row))
    told: dict[str, tuple[Feedback, ...]] = defaultdict(tuple)
    for start in range(0, len(ids), PARENTS):
        for one in await fetch_feedback(connection, ids[start : start + PARENTS]):
            told[one.episode_id] += (one,)
    decoded = [decode_episode(row, tries[row["id"]], thoughts[row["id"]]) for row in rows]
    for episode in decoded:
        episode.feedback = told[episode.id]
    return decoded


async def _fetch_parts(connection: AsyncConnection, table: Table, ids: Sequence[str], *, heavy: bool) -> list[Row]:
    """Fetch the rows of `attempts` or `reflections` that belong to these episodes, in the order of their numbers."""
    columns = [column for column in table.columns if heavy or column.name not in HEAVY]
    found: list[Row] = []
    for start in range(0, len(ids), PARENTS):
        belong = table.c.episode_id.in_(ids[start : start + PARENTS])
        found += await fetch_rows(connection, select(*columns).where(belong).order_by(*table.primary_key.columns))
    return found
