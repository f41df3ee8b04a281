"""Keeps the backtests: the row is the truth about each, whichever process runs it.

Called by the API (create, show, cancel) and by the process that runs one. Taking one is a single UPDATE, so that of any
number of processes exactly one gets it. What that one writes names it as the owner: once it was taken over, or the
backtest was cancelled, its writes change nothing and say so. Times are the database's clock.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, String, and_, cast, func, insert, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain import Backtest, BacktestState, new_id
from server.errors import Conflict, NotFound, TooManyRequests
from server.store.clock import UnixNow
from server.store.database import Database
from server.store.rows import Row, clean_values, fetch_one, fetch_row, fetch_rows, to_json
from server.store.tables import api_keys, backtests

MAX_LEASES = 2
"""How many processes may begin a backtest: where the second is lost too, what it runs is likely to be the cause."""

_RUNNING = backtests.c.state == BacktestState.RUNNING.value
_BLANK: dict[str, Any] = {
    "state": BacktestState.RUNNING.value,
    "leases": 0,
    "done": 0,
    "total": 0,
    "report": {},
    "error": "",
    "owner": "",
    "heartbeat_at": 0.0,
    "ended_at": 0.0,
}


class BacktestStore:
    """The backtests of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, verifier: str, version: int, key: str, options: Mapping[str, Any], *, most_open: int | None = None
    ) -> Backtest:
        """Queue a backtest: it runs as soon as some process takes it.

        Raises: TooManyRequests where `most_open` of the key run or wait already.
        """
        values = clean_values({**_BLANK, "id": new_id("bt"), "verifier": verifier, "version": version, "key": key})
        statement = insert(backtests).values(**values, options=to_json(options), created_at=UnixNow())
        async with self._database.write() as connection:
            if most_open is not None and await _count_open(connection, key) >= most_open:
                raise TooManyRequests(f"This key has {most_open} backtests under way: wait for one, or cancel it.")
            return _decode(await fetch_one(connection, statement.returning(backtests)))

    async def get(self, backtest_id: str) -> Backtest | None:
        """Find a backtest by its id."""
        async with self._database.read() as connection:
            row = await fetch_row(connection, select(backtests).where(backtests.c.id == backtest_id))
        return _decode(row) if row else None

    async def list(
        self, *, verifier: str | None = None, key: str | None = None, limit: int = 50, before: str | None = None
    ) -> list[Backtest]:
        """List backtests, newest first; `before`: the id of the last one of the page before."""
        statement = select(backtests).order_by(backtests.c.id.desc()).limit(limit)
        for column, value in ((backtests.c.verifier, verifier), (backtests.c.key, key)):
            if value is not None:
                statement = statement.where(column == value)
        if before is not None:
            statement = statement.where(backtests.c.id < before)
        async with self._database.read() as connection:
            return [_decode(row) for row in await fetch_rows(connection, statement)]

    async def take(self, process: str, *, lost_after_s: float) -> Backtest | None:
        """Take the oldest backtest that waits, or whose process fell silent for `lost_after_s`; None if there is none.

        Its `owner` is the process and how many times it was begun: what an earlier lease still writes is refused. One
        that `MAX_LEASES` processes lost has failed.
        """
        lost = and_(backtests.c.owner != "", backtests.c.heartbeat_at < UnixNow() - lost_after_s)
        open_ = and_(_RUNNING, or_(backtests.c.owner == "", lost))
        if await self._none(open_):
            return None
        async with self._database.write() as connection:
            await self._give_up(connection, and_(_RUNNING, lost, backtests.c.leases >= MAX_LEASES))
            oldest = select(backtests.c.id).where(open_).order_by(backtests.c.id).limit(1)
            if self._database.dialect == "postgresql":
                oldest = oldest.with_for_update(skip_locked=True)
            taken = backtests.c.id == oldest.scalar_subquery()
            row = await fetch_row(
                connection, update(backtests).where(taken).values(**_lease(process)).returning(backtests)
            )
        return _decode(row) if row else None

    async def progress(self, backtest: Backtest, done: int, total: int) -> bool:
        """Say how far its owner is, and that it lives. False where it is not its any more: stop."""
        return await self._write(backtest, {"done": done, "total": total, "heartbeat_at": UnixNow()})

    async def finish(self, backtest: Backtest, report: Mapping[str, Any]) -> bool:
        """End it with its report. False where it was not its owner's any more."""
        done = report.get("sampled", 0)
        ending = {"state": BacktestState.DONE.value, "done": done, "total": done, "ended_at": UnixNow()}
        return await self._write(backtest, {**ending, "report": to_json(report)})

    async def fail(self, backtest: Backtest, error: str) -> bool:
        """End it with the reason why there is no report. False where it was not its owner's any more."""
        ending = {"state": BacktestState.FAILED.value, "error": error, "ended_at": UnixNow()}
        return await self._write(backtest, ending)

    async def release(self, backtest: Backtest) -> bool:
        """Put it back for another process, since this one stops in good order: that is no lease lost."""
        return await self._write(backtest, {"owner": "", "leases": backtests.c.leases - 1, "done": 0, "total": 0})

    async def cancel(self, backtest_id: str) -> Backtest:
        """End it without a report; its owner sees that at its next heartbeat.

        Raises: NotFound; Conflict if it ended otherwise already.
        """
        changes = {"state": BacktestState.CANCELLED.value, "ended_at": UnixNow()}
        statement = update(backtests).where(backtests.c.id == backtest_id, _RUNNING).values(**changes)
        async with self._database.write() as connection:
            row = await fetch_row(connection, statement.returning(backtests))
        if row is not None:
            return _decode(row)
        found = await self.get(backtest_id)
        if found is None:
            raise NotFound(f"There is no backtest {backtest_id!r}.", code="backtest_not_found")
        if found.state is not BacktestState.CANCELLED:
            raise Conflict(f"The backtest {backtest_id} has ended already: {found.state}.")
        return found

    async def _none(self, condition: ColumnElement[bool]) -> bool:
        """Look before the writer's lock is taken: this is asked every second, and as a rule there is nothing."""
        async with self._database.read() as connection:
            return not await fetch_rows(connection, select(literal(1)).where(condition).limit(1))

    async def _give_up(self, connection: AsyncConnection, lost: ColumnElement[bool]) -> None:
        error = literal("the process that ran it was lost, as the one before: ") + backtests.c.owner
        ending = {"state": BacktestState.FAILED.value, "error": error, "ended_at": UnixNow()}
        await connection.execute(update(backtests).where(lost).values(**ending))

    async def _write(self, backtest: Backtest, changes: Mapping[str, Any]) -> bool:
        held = and_(backtests.c.id == backtest.id, backtests.c.owner == backtest.owner, _RUNNING)
        statement = update(backtests).where(held).values(**clean_values(changes)).returning(backtests.c.id)
        async with self._database.write() as connection:
            return await fetch_row(connection, statement) is not None


async def _count_open(connection: AsyncConnection, key: str) -> int:
    """Count a key's backtests that run or wait. The key's row is locked: who asks at the same time waits."""
    await fetch_rows(connection, select(api_keys.c.id).where(api_keys.c.id == key).with_for_update())
    counting = select(func.count().label("count")).where(_RUNNING, backtests.c.key == key)
    return (await fetch_one(connection, counting))["count"]


def _lease(process: str) -> dict[str, Any]:
    leases = backtests.c.leases + 1
    owner = literal(f"{process}/") + cast(leases, String)
    return {"owner": owner, "leases": leases, "heartbeat_at": UnixNow(), "done": 0, "total": 0}


def _decode(row: Row) -> Backtest:
    known = {name: value for name, value in row.items() if name != "leases"}
    return Backtest(**{**known, "state": BacktestState(row["state"])})
