"""Counts, within bounds, what a task has for its next round and its gate. It never writes."""

from collections.abc import Collection, Sequence

import msgspec
from sqlalchemy import select

from server.domain import Binding, BindingMode
from server.store.database import Database
from server.store.episodes import HELD_OUT, TRAINING, VERIFIED, count_failures
from server.store.problems import find_problems
from server.store.rows import Row, fetch_rows
from server.store.tables import episodes

_AT_ONCE = 500


class ProgressStore:
    """What has been gathered, in one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def count_problems(self, task: str, revoked: Collection[str], *, most: int) -> int:
        """Count different held-out problems that a gate may ask: bound to what counts and is not revoked.

        As a gate does, it looks at the `most` newest problems.
        """
        rows: list[Row] = []
        async with self._database.read() as connection:
            ids = await find_problems(connection, task, limit=most)
            for start in range(0, len(ids), _AT_ONCE):
                some = select(episodes.c.bindings).where(episodes.c.id.in_(ids[start : start + _AT_ONCE]))
                rows += await fetch_rows(connection, some)
        return sum(_may_be_asked(msgspec.convert(row["bindings"], tuple[Binding, ...]), revoked) for row in rows)

    async def count_failures(self, task: str, *, since: float, most: int) -> int:
        """Count the failures that were logged since then and may be trained on, up to `most`."""
        async with self._database.read() as connection:
            return await count_failures(connection, task, since=since, most=most)

    async def find_logged(self, task: str, problems: Sequence[str]) -> set[str]:
        """Find which problems, by their hashes, were asked and judged already, where rounds and gates may use it."""
        found: set[str] = set()
        for start in range(0, len(problems), _AT_ONCE):
            statement = select(episodes.c.problem).where(
                episodes.c.task == task,
                episodes.c.split.in_((HELD_OUT, TRAINING)),
                episodes.c.problem.in_(problems[start : start + _AT_ONCE]),
                episodes.c.store.is_(True),
                episodes.c.trains.is_(True),
                episodes.c.outcome.in_(VERIFIED),
            )
            async with self._database.read() as connection:
                found |= {row["problem"] for row in await fetch_rows(connection, statement)}
        return found


def _may_be_asked(bindings: tuple[Binding, ...], revoked: Collection[str]) -> bool:
    enforcing = [binding for binding in bindings if binding.mode == BindingMode.ENFORCE]
    return bool(enforcing) and not any(binding.name and binding.pin in revoked for binding in enforcing)
