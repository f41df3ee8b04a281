"""Reads logged answers one by one, to be judged again. Called by backtests; it never writes.

What may be big is read only for what was chosen, as text that the caller decodes where it holds nobody up.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec
from sqlalchemy import Select, Text, cast, select

from server.domain import Binding, LoggedVerdict
from server.store.database import Database
from server.store.rows import fetch_row, fetch_rows
from server.store.tables import attempts, episodes

EPISODES_A_PAGE = 200


@dataclass(frozen=True, slots=True)
class Selection:
    """Which logged episodes; what is None or 0 does not narrow. Times are Unix seconds, the upper one left out."""

    task: str | None = None
    outcome: str | None = None
    adapter: str | None = None
    key: str | None = None
    since: float = 0.0
    until: float = 0.0


@dataclass(frozen=True, slots=True)
class LoggedId:
    """One attempt in the log. `kept`: whether its content is there."""

    episode_id: str
    number: int
    kept: bool


@dataclass(frozen=True, slots=True)
class LoggedAnswer:
    """One attempt in the log and what it answered; `request` and `answer` are JSON."""

    episode_id: str
    number: int
    request: str
    answer: str
    bindings: tuple[Binding, ...]
    verdicts: tuple[LoggedVerdict, ...]


class LoggedAnswerStore:
    """The logged answers of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def pages(
        self, selection: Selection, *, episodes_a_page: int = EPISODES_A_PAGE
    ) -> AsyncIterator[list[LoggedId]]:
        """Go through the attempts of a selection, oldest first, by their ids alone. No transaction is held between."""
        after = ""
        while True:
            statement = _narrow(select(episodes.c.id, episodes.c.store), selection)
            statement = statement.where(episodes.c.id > after).order_by(episodes.c.id).limit(episodes_a_page)
            async with self._database.read() as connection:
                found = await fetch_rows(connection, statement)
                kept = {row["id"]: row["store"] for row in found}
                belong = attempts.c.episode_id.in_(list(kept))
                numbers = select(attempts.c.episode_id, attempts.c.number).where(belong)
                rows = await fetch_rows(connection, numbers.order_by(*attempts.primary_key.columns)) if found else []
            yield [LoggedId(row["episode_id"], row["number"], kept[row["episode_id"]]) for row in rows]
            if len(found) < episodes_a_page:
                return
            after = found[-1]["id"]

    async def read(self, chosen: LoggedId) -> LoggedAnswer | None:
        """Read one attempt with its request; None where its content is not kept, or the episode is gone."""
        request, answer = cast(episodes.c.request, Text).label("request"), cast(attempts.c.answer, Text).label("answer")
        statement = (
            select(request, answer, episodes.c.bindings, attempts.c.verdicts)
            .join(attempts, attempts.c.episode_id == episodes.c.id)
            .where(episodes.c.id == chosen.episode_id, attempts.c.number == chosen.number)
        )
        async with self._database.read() as connection:
            row = await fetch_row(connection, statement)
        if row is None or row["request"] is None:
            return None
        return LoggedAnswer(
            chosen.episode_id,
            chosen.number,
            row["request"],
            row["answer"],
            msgspec.convert(row["bindings"], tuple[Binding, ...]),
            msgspec.convert(row["verdicts"], tuple[LoggedVerdict, ...]),
        )


def _narrow(statement: Select, selection: Selection) -> Select:
    for name in ("task", "outcome", "adapter", "key"):
        if (value := getattr(selection, name)) is not None:
            statement = statement.where(episodes.c[name] == str(value))
    if selection.since:
        statement = statement.where(episodes.c.created_at >= selection.since)
    if selection.until:
        statement = statement.where(episodes.c.created_at < selection.until)
    return statement
