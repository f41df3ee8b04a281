"""Keeps what is said of episodes later: one verdict an episode and source. Called by the API and the command line.

Nothing is overwritten silently: what replaces another one leaves that in the audit log, in the same transaction.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace

from sqlalchemy import func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain import Event, Feedback
from server.errors import Conflict, NotFound
from server.store.database import Database
from server.store.events import write_event
from server.store.rows import clean_values, fetch_one, fetch_row, fetch_rows
from server.store.tables import episodes, feedback

REPLACED = "feedback.replaced"
MOST_SOURCES = 100
"""How many sources may speak of one episode: all that they say is read with it. At once a few more may get in."""


class FeedbackStore:
    """The feedback of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = postgresql.insert if database.dialect == "postgresql" else sqlite.insert

    async def give(self, given: Feedback, *, overwrite: bool = False, own_only: bool = False) -> Feedback:
        """Add feedback on a logged episode; what is there already, where it says the same.

        `overwrite` puts it in the place of what its source said before; with `own_only` only if the same key sent that.

        Raises: NotFound where the episode is not in the log, or was deleted meanwhile; Conflict where the source said
        something else, or where MOST_SOURCES others spoke already.
        """
        values = clean_values(asdict(replace(given, created_at=given.created_at or time.time())))
        adding = self._insert(feedback).values(**values).on_conflict_do_nothing().returning(feedback)
        there = (feedback.c.episode_id == values["episode_id"]) & (feedback.c.source == values["source"])
        async with self._database.write() as connection:
            await _hold_episode(connection, values["episode_id"])
            if (added := await fetch_row(connection, adding)) is not None:
                await _check_room(connection, values["episode_id"])  # an error takes the new row back
                return Feedback(**added)
            # Locked, so that of two that replace it at once each one leaves what it found in the audit log.
            former = Feedback(**await fetch_one(connection, select(feedback).where(there).with_for_update()))
            wanted = Feedback(**values)
            if replace(wanted, created_at=former.created_at) == former:
                return former
            if not overwrite and _says(wanted) == _says(former):
                return former
            if not overwrite or (own_only and wanted.key != former.key):
                raise _conflict(former, another=wanted.key != former.key)
            await connection.execute(update(feedback).where(there).values(**values))
            await write_event(connection, _note(former, wanted))
            return wanted

    async def list(self, *, task: str | None = None, limit: int = 50) -> list[Feedback]:
        """List feedback on the newest episodes, of one task or of all; by source within an episode."""
        columns = feedback.c
        newest = select(columns.episode_id).order_by(columns.episode_id.desc()).limit(limit)
        statement = select(feedback).order_by(columns.episode_id.desc(), columns.source).limit(limit)
        if task is not None:
            joined = feedback.join(episodes, episodes.c.id == columns.episode_id)
            newest, statement = (one.select_from(joined).where(episodes.c.task == task) for one in (newest, statement))
        async with self._database.read() as connection:
            # No index has this order, so it is sorted: only what is new enough, never all that was ever said.
            ids = await fetch_rows(connection, newest)
            if not ids:
                return []
            since = statement.where(columns.episode_id >= ids[-1]["episode_id"])
            return [Feedback(**row) for row in await fetch_rows(connection, since)]


async def fetch_feedback(connection: AsyncConnection, episode_ids: Sequence[str]) -> list[Feedback]:
    """Fetch the feedback on some episodes, by source within each."""
    statement = select(feedback).where(feedback.c.episode_id.in_(episode_ids)).order_by(*feedback.primary_key.columns)
    return [Feedback(**row) for row in await fetch_rows(connection, statement)]


async def _hold_episode(connection: AsyncConnection, episode_id: str) -> None:
    """Keep a deletion from passing by until this is committed: what it did not see would outlive the episode."""
    held = select(episodes.c.id).where(episodes.c.id == episode_id).with_for_update(read=True, key_share=True)
    if await fetch_row(connection, held) is None:
        message = f"There is no episode {episode_id!r} any more."
        raise NotFound(message, param="episode_id", code="episode_not_found")


async def _check_room(connection: AsyncConnection, episode_id: str) -> None:
    counting = select(func.count().label("count")).where(feedback.c.episode_id == episode_id)
    if (await fetch_one(connection, counting))["count"] > MOST_SOURCES:
        message = f"{MOST_SOURCES} sources have spoken of this episode already: replace what one of them said."
        raise Conflict(message, param="source", code="too_much_feedback")


def _says(one: Feedback) -> tuple[bool, float | None, str]:
    return one.passed, one.score, one.comment


def _conflict(former: Feedback, *, another: bool) -> Conflict:
    said = "passed" if former.passed else "failed"
    score = "" if former.score is None else f" with score {former.score:g}"
    whose = ", sent with another key" if another else ""
    return Conflict(
        f"{former.source!r} said {said}{score} of this episode before{whose}: `replace` puts this in its place, "
        "for the key that sent it and for approvers and admins.",
        param="source",
        code="feedback_exists",
    )


def _note(former: Feedback, wanted: Feedback) -> Event:
    said = {name: value for name, value in asdict(former).items() if name not in ("episode_id", "source")}
    now = {"passed": wanted.passed, "score": wanted.score, "trains": wanted.trains}
    details = {"source": former.source, "from": said, "to": now}
    return Event(REPLACED, former.episode_id, wanted.key, details, wanted.created_at)
