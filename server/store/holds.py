"""Keeps two hands off one adapter: who is about to need it in the engines, and who takes it out of them.

Called by the hot swap and by the sweep of orphans. Both write the same row before they touch an engine, so that one of
them sees the other: an adapter that is being promoted is not unloaded, and one that is being unloaded is not promoted
before that is done. Both end by the database's clock, so that a process that died in between holds nothing up.
"""

from typing import Any

from sqlalchemy import or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from server.domain import RoundState
from server.store.clock import UnixNow
from server.store.database import Database
from server.store.rows import fetch_row, fetch_rows
from server.store.tables import adapter_holds, rounds, tasks

HOLD_S = 600.0
"""A promotion that takes longer (loading, probing, waiting for every process) has lost its hold."""
UNLOAD_S = 60.0
"""So long an unload is waited for: the adapter has no episodes any more when it begins."""


class HoldStore:
    """The holds of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = postgresql.insert if database.dialect == "postgresql" else sqlite.insert

    async def hold(self, adapter: str, seconds: float = HOLD_S) -> bool:
        """Keep an adapter from being unloaded; false where somebody is unloading it now."""
        return await self._claim(
            adapter,
            {"held_until": UnixNow() + seconds, "unloading_until": 0.0},
            adapter_holds.c.unloading_until < UnixNow(),
        )

    async def release(self, adapter: str) -> None:
        """End a hold."""
        statement = update(adapter_holds).where(adapter_holds.c.adapter == adapter).values(held_until=0.0)
        async with self._database.write() as connection:
            await connection.execute(statement)

    async def begin_unload(self, adapter: str, seconds: float = UNLOAD_S) -> bool:
        """Claim an adapter for unloading; false where it is held, or being unloaded already.

        Whoever claimed it looks at `find_use` afterwards: what came before the claim is seen there.
        """
        free = (adapter_holds.c.held_until < UnixNow()) & (adapter_holds.c.unloading_until < UnixNow())
        return await self._claim(adapter, {"held_until": 0.0, "unloading_until": UnixNow() + seconds}, free)

    async def end_unload(self, adapter: str) -> None:
        """Say that an unload is done, or given up."""
        statement = update(adapter_holds).where(adapter_holds.c.adapter == adapter).values(unloading_until=0.0)
        async with self._database.write() as connection:
            await connection.execute(statement)

    async def find_use(self, adapter: str, *, except_round: str = "") -> str:
        """Say who needs an adapter in the engines; "" where nobody does.

        A task's champion and its canary are needed; and while a round of the task runs, its pushes and all that the
        task ever saved, since the round may have begun with any of them and its gate asks the champion that was.
        `except_round` is the id of a round that needs nothing any more.
        """
        task_name, _, rest = adapter.partition("@")
        pushed_by = rest.partition(".")[0] if "." in rest else ""
        serves = select(tasks.c.name, tasks.c.champion).where(
            or_(tasks.c.champion == adapter, tasks.c.canary == adapter)
        )
        running_rounds = select(rounds.c.id, rounds.c.number).where(
            rounds.c.state == RoundState.RUNNING.value, rounds.c.task == task_name, rounds.c.id != except_round
        )
        async with self._database.read() as connection:
            task = await fetch_row(connection, serves)
            running = await fetch_rows(connection, running_rounds)
        if task is not None:
            return f"it is the {'champion' if task['champion'] == adapter else 'canary'} of task {task['name']}"
        for row in running:
            if not pushed_by or pushed_by == str(row["number"]):
                return f"round {row['id']} uses it"
        return ""

    async def _claim(self, adapter: str, values: dict[str, Any], free: Any) -> bool:
        statement = self._insert(adapter_holds).values(adapter=adapter, **values)
        statement = statement.on_conflict_do_update(index_elements=["adapter"], set_=values, where=free)
        async with self._database.write() as connection:
            return await fetch_row(connection, statement.returning(adapter_holds.c.adapter)) is not None
