"""Finds a task's held-out problems, the newest first, at a cost that hangs on how many are wanted, not on the log.

Called by the stores that select for a gate, count for it, or keep what it needs. Two ways, each quick where the other
is not: walking back through the newest episodes, where they are of many problems; hopping from problem to problem,
where there are fewer than are wanted, however often they were asked.
"""

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.store.newest import newest_first
from server.store.rows import fetch_rows
from server.store.tables import ASKABLE, episodes

FIRST_PAGE, LAST_PAGE = 500, 20_000
FIRST_PAGES = 2  # before it is worth a look whether there are so many problems at all


async def find_problems(connection: AsyncConnection, task: str, *, limit: int) -> list[str]:
    """Find the ids of the newest askable episode of each of the `limit` newest problems, newest first.

    Askable is what a gate may ask again: held out, judged, with content, of a key that did not opt out of training.
    """
    walk = _Walk(task, limit)
    if await walk.go(connection, FIRST_PAGES):
        return walk.found
    few = await _hop(connection, task, limit + 1)
    if len(few) <= limit:
        return sorted(few, reverse=True)
    await walk.go(connection, None)
    return walk.found


async def _hop(connection: AsyncConnection, task: str, limit: int) -> list[str]:
    """Find the newest episode of each of some problems, in the order of the problems' hashes."""
    hops = _hops(task)
    newest = _askable(task).with_only_columns(episodes.c.id).where(episodes.c.problem == hops.c.problem)
    newest = newest.order_by(episodes.c.id.desc()).limit(1).scalar_subquery().label("id")
    statement = select(newest).select_from(hops).where(hops.c.problem.is_not(None)).limit(limit)
    return [row["id"] for row in await fetch_rows(connection, statement)]


def _askable(task: str) -> Select:
    return select(episodes.c.id, episodes.c.problem).where(episodes.c.task == task, ASKABLE)


def _hops(task: str):  # noqa: ANN202 - a common table expression
    """Make the list of problems, each found by one look into the index behind the one before; the last row is NULL."""
    askable = select(episodes.c.problem).where(episodes.c.task == task, ASKABLE).order_by(episodes.c.problem).limit(1)
    hops = select(askable.scalar_subquery().label("problem")).cte("hops", recursive=True)
    further = askable.where(episodes.c.problem > hops.c.problem).scalar_subquery()
    return hops.union_all(select(further).where(hops.c.problem.is_not(None)))


class _Walk:
    """A walk back from the newest episode, in pages that grow, until so many different problems were met."""

    def __init__(self, task: str, limit: int) -> None:
        self._task = task
        self._limit = limit
        self._newest: dict[str, str] = {}
        self._before: str | None = None
        self._size = FIRST_PAGE

    @property
    def found(self) -> list[str]:
        """The newest episode of each problem that was met, newest first."""
        return list(self._newest.values())[: self._limit]

    async def go(self, connection: AsyncConnection, pages: int | None) -> bool:
        """Walk on, through so many pages at most; say whether it is at its end."""
        while pages is None or pages > 0:
            columns = select(episodes.c.id, episodes.c.problem).where(ASKABLE)
            page = newest_first(columns, episodes.c.task, self._task).limit(self._size)
            if self._before is not None:
                page = page.where(episodes.c.id < self._before)
            rows = await fetch_rows(connection, page)
            for row in rows:
                self._newest.setdefault(row["problem"], row["id"])
            if len(rows) < self._size or len(self._newest) >= self._limit:
                return True
            self._before, self._size = rows[-1]["id"], min(2 * self._size, LAST_PAGE)
            pages = None if pages is None else pages - 1
        return False
