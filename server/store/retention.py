"""Bounds how old the log gets. Called by the worker's tick and by `mulligan log`; nothing else takes from it by age.

On PostgreSQL whole months are dropped once all that is in them is past the limit, which takes no longer for a million
episodes than for ten. What lies outside of months (what the log held before it had any, and what came late) goes row by
row, as everything does on SQLite, a few at a time, so that nobody waits for it. Feedback goes with its episodes. The
newest held-out problems of each task are kept beyond the limit, as many as it is told, for the gate needs them. What
rounds trained on and the adapters stay on record: they hold no content. The spool is never touched.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import column, delete, func, select, table, text
from sqlalchemy.ext.asyncio import AsyncConnection

from server.store.database import Database
from server.store.months import MonthStore, Partition
from server.store.partitions import DEFAULT, Month, border_id, read_time
from server.store.problems import find_problems
from server.store.rows import fetch_one, fetch_row, fetch_rows
from server.store.tables import episodes, feedback, tasks

DAY_S = 86400.0
MONTHS_AHEAD = 3
BATCH = 200  # episodes of one transaction: SQLite has one writer, and answers wait for it
PAUSE_S = 0.02  # ... who gets in between


@dataclass(frozen=True, slots=True)
class LogStatus:
    """What the log holds. Times are Unix seconds.

    `rows` are episodes, estimated on PostgreSQL where they are many. `bytes` are those of the log's tables and indexes
    there, and of the whole file on SQLite. `retention_days` is 0 for ever; `past_limit` episodes are to go now, `kept`
    held-out problems stay though they are past it. `next_at` is when something will go next, and `next_what` says what;
    0 and "" where nothing will.
    """

    rows: int
    bytes: int
    oldest: str
    oldest_at: float
    retention_days: float
    past_limit: int
    kept: int
    next_at: float
    next_what: str
    partitions: tuple[Partition, ...]


@dataclass(frozen=True, slots=True)
class Pruned:
    """What went, or what would: months by name, episodes that went with them (estimated) and row by row, feedback.

    `kept` counts held-out problems that stay though they are past the limit. `more`: there was no time for the rest.
    """

    months: tuple[str, ...] = ()
    month_episodes: int = 0
    episodes: int = 0
    feedback: int = 0
    kept: int = 0
    more: bool = False


@dataclass(frozen=True, slots=True)
class _Limit:
    """What is below `border` goes but for `kept`, until `until` of the monotonic clock."""

    border: str
    kept: frozenset[str]
    until: float | None
    tell: Callable[[Pruned], None]


class RetentionStore:
    """The age of the log in one database.

    `days`: how long an episode is kept, 0 for ever. `keep_problems`: how many held-out problems of each task stay
    beyond that, the newest.
    """

    def __init__(self, database: Database, days: float, keep_problems: int) -> None:
        self._database = database
        self._days = days
        self._keep_problems = keep_problems
        self._months = MonthStore(database)

    async def read_partitions(self) -> list[Partition]:
        """Read the months of the log, oldest first; none on SQLite."""
        return await self._months.read()

    async def read_status(self, now: float | None = None) -> LogStatus:
        """Read what the log holds and what goes next."""
        now = time.time() if now is None else now
        partitions = await self._months.read()
        async with self._database.read() as connection:
            if partitions:
                rows, size = sum(one.rows for one in partitions), sum(one.bytes for one in partitions)
            else:
                rows = (await fetch_one(connection, select(func.count().label("count")).select_from(episodes)))["count"]
                size = await _measure_file(connection)
            oldest = await _find_oldest(connection, "")
            # What is past the limit and stays is no sign of what goes next.
            young = await _find_oldest(connection, self._border(now) or "")
        would = await self.plan(now)
        past_limit = would.month_episodes + would.episodes
        next_at, next_what = self._name_next(partitions, oldest if past_limit else young)
        return LogStatus(
            rows=rows,
            bytes=size,
            oldest=oldest,
            oldest_at=read_time(oldest) or 0.0,
            retention_days=self._days,
            past_limit=past_limit,
            kept=would.kept,
            next_at=next_at,
            next_what=next_what,
            partitions=tuple(partitions),
        )

    def _name_next(self, partitions: Sequence[Partition], oldest: str) -> tuple[float, str]:
        """Say when what goes next goes, and what it is."""
        made_at = read_time(oldest)
        if not self._days or made_at is None:
            return 0.0, ""
        holder = next((one for one in partitions if one.past and one.first <= oldest < one.past), None)
        if holder is None or _is_mixed(holder):
            return made_at + self._days * DAY_S, "the oldest episodes, row by row"
        return (read_time(holder.past or "") or 0.0) + self._days * DAY_S, f"the month {holder.name}, whole"

    async def plan(self, now: float | None = None, *, exact: bool = False) -> Pruned:
        """Say what `prune` would take now, without taking it; feedback is not counted."""
        border = self._border(now)
        if border is None:
            return Pruned()
        kept = await self._find_kept(border)
        whole, rest = _divide(await self._months.read(), border, exact=exact)
        months = tuple(one.name for one in whole)
        count = 0
        async with self._database.read() as connection:
            for name in rest:
                past = select(func.count().label("count")).select_from(_rows_of(name)).where(column("id") < border)
                count += (await fetch_one(connection, past))["count"]
        in_months = sum(any(one.first <= kept_id < (one.past or "") for one in whole) for kept_id in kept)
        return Pruned(
            months=months,
            month_episodes=max(0, sum(one.rows for one in whole) - in_months),
            episodes=max(0, count - (len(kept) - in_months)),
            kept=len(kept),
        )

    async def prune(
        self,
        now: float | None = None,
        *,
        exact: bool = False,
        within_s: float | None = None,
        tell: Callable[[Pruned], None] = lambda _: None,
    ) -> Pruned:
        """Take what is past the limit: whole months first, then the rest row by row.

        `exact`: also the part of a month that is past it, row by row. `within_s`: for so long at most; what is left
        then waits for the next time. `tell` is called after each month and each batch with what went so far.
        """
        border = self._border(now)
        if border is None:
            return Pruned()
        until = None if within_s is None else time.monotonic() + within_s
        kept = await self._find_kept(border)
        limit = _Limit(border, frozenset(kept), until, tell)
        whole, rest = _divide(await self._months.read(), border, exact=exact)
        done = Pruned(kept=len(kept))
        for one in whole:
            if not await self._months.drop(one, kept):
                done = _add(done, more=True)
                continue
            done = _add(done, months=(one.name,), month_episodes=one.rows)
            tell(done)
        for name in rest:
            done = await self._prune_rows(name, limit, done)
        if whole:
            done = _add(done, feedback=await self._prune_feedback(border))
        tell(done)
        return done

    async def make_months(self, now: float | None = None) -> list[str]:
        """Make the partitions of this month and the next ones where they are missing; return their names."""
        made = await self._months.make(Month.of(time.time() if now is None else now), MONTHS_AHEAD + 1)
        await self._months.sweep()
        return made

    async def analyse(self) -> None:
        """Gather the planner's figures over all partitions together."""
        await self._months.analyse()

    def _border(self, now: float | None) -> str | None:
        """Make the id that everything past the limit is below; None where all is kept for ever."""
        if not self._days:
            return None
        return border_id(max(0.0, (time.time() if now is None else now) - self._days * DAY_S))

    async def _find_kept(self, border: str) -> list[str]:
        """Find the held-out problems that stay though they are past the limit."""
        found: list[str] = []
        if not self._keep_problems:
            return found
        async with self._database.read() as connection:
            oldest = await _find_oldest(connection, "")
            if not oldest or oldest >= border:
                return found
            for task in await fetch_rows(connection, select(tasks.c.name)):
                found += await find_problems(connection, task["name"], limit=self._keep_problems)
        return [one for one in found if one < border]

    async def _prune_rows(self, name: str, limit: _Limit, done: Pruned) -> Pruned:
        """Delete what is past the limit in one table, with what belongs to it."""
        rows, after = _rows_of(name), ""
        while True:
            if limit.until is not None and time.monotonic() > limit.until:
                return _add(done, more=True)
            page = select(rows.c.id).where(rows.c.id < limit.border, rows.c.id > after).order_by(rows.c.id).limit(BATCH)
            async with self._database.read() as connection:
                found = [row["id"] for row in await fetch_rows(connection, page)]
            gone = [one for one in found if one not in limit.kept]
            if gone:
                async with self._database.write() as connection:
                    # The rows first: that waits for feedback which is just being given, and it is seen then.
                    result = await connection.execute(delete(rows).where(rows.c.id.in_(gone)))
                    told = await connection.execute(delete(feedback).where(feedback.c.episode_id.in_(gone)))
                done = _add(done, episodes=result.rowcount, feedback=told.rowcount)
                limit.tell(done)
            if len(found) < BATCH:
                return done
            after = found[-1]
            await asyncio.sleep(PAUSE_S)

    async def _prune_feedback(self, border: str) -> int:
        """Delete the feedback on what is past the limit and gone."""
        after, count = "", 0
        while True:
            page = select(feedback.c.episode_id).where(feedback.c.episode_id < border, feedback.c.episode_id > after)
            page = page.distinct().order_by(feedback.c.episode_id).limit(BATCH)
            async with self._database.write() as connection:
                ids = [row["episode_id"] for row in await fetch_rows(connection, page)]
                there = await fetch_rows(connection, select(episodes.c.id).where(episodes.c.id.in_(ids)))
                gone = set(ids) - {row["id"] for row in there}
                result = await connection.execute(delete(feedback).where(feedback.c.episode_id.in_(gone)))
            count += result.rowcount
            if len(ids) < BATCH:
                return count
            after = ids[-1]
            await asyncio.sleep(PAUSE_S)


def _rows_of(name: str):  # noqa: ANN202 - a table of ids
    return table(f"{episodes.name}_{name}" if name else str(episodes.name), column("id"))


def _is_mixed(partition: Partition) -> bool:
    """Say whether a partition is no single month: what it holds goes row by row."""
    return partition.name == DEFAULT or not partition.first


def _divide(partitions: Sequence[Partition], border: str, *, exact: bool) -> tuple[list[Partition], list[str]]:
    """Divide the log into what goes whole and the names of what goes row by row; "" is the plain table of SQLite."""
    if not partitions:
        return [], [""]
    whole = [one for one in partitions if one.past is not None and one.past <= border]
    rest = [one for one in partitions if one not in whole and one.first < border]
    return whole, [one.name for one in rest if exact or _is_mixed(one)]


def _add(done: Pruned, *, months: tuple[str, ...] = (), more: bool = False, **counts: int) -> Pruned:
    return Pruned(
        months=done.months + months,
        month_episodes=done.month_episodes + counts.get("month_episodes", 0),
        episodes=done.episodes + counts.get("episodes", 0),
        feedback=done.feedback + counts.get("feedback", 0),
        kept=done.kept,
        more=done.more or more,
    )


async def _find_oldest(connection: AsyncConnection, since: str) -> str:
    oldest = select(episodes.c.id).where(episodes.c.id >= since).order_by(episodes.c.id).limit(1)
    row = await fetch_row(connection, oldest)
    return row["id"] if row else ""


async def _measure_file(connection: AsyncConnection) -> int:
    pages = await connection.scalar(text("PRAGMA page_count"))
    return int(pages) * int(await connection.scalar(text("PRAGMA page_size")))
