"""The queue of each pool: which round is next, and that one of a pool runs at a time.

Called by the round store, inside its transactions. A pool's row is locked before a round of it is leased, so that of
any number of workers one looks at a time. The order is fair over tasks: the round goes first whose task's last round
ended longest ago (never: before all others), and of those the one that was asked for first. A task that queues again
and again goes behind the others each time, so none starves.
"""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Select, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain import DEFAULT_POOL, Round, RoundState
from server.store.rows import fetch_row, fetch_rows
from server.store.tables import pools, rounds, tasks


def queue_of(pool: str | None = None) -> Select:
    """Select the queued rounds, of one pool or of all, those that are next first."""
    # What was cancelled before it began has trained nothing.
    ended = (
        select(rounds.c.task, func.max(rounds.c.ended_at).label("at"))
        .where(rounds.c.ended_at > 0, rounds.c.started_at > 0)
        .group_by(rounds.c.task)
        .subquery("ended")
    )
    statement = (
        select(rounds)
        .outerjoin(ended, ended.c.task == rounds.c.task)
        .where(rounds.c.state == RoundState.QUEUED.value)
        .order_by(func.coalesce(ended.c.at, 0.0), rounds.c.created_at, rounds.c.id)
    )
    return statement if pool is None else statement.where(rounds.c.pool == pool)


async def lock_pool(connection: AsyncConnection, pool: str) -> bool:
    """Lock a pool until the transaction ends; say whether no round of it runs."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    await connection.execute(dialect.insert(pools).values(name=pool).on_conflict_do_nothing())
    await connection.execute(update(pools).where(pools.c.name == pool).values(name=pool))
    running = select(rounds.c.id).where(rounds.c.pool == pool, rounds.c.state == RoundState.RUNNING.value).limit(1)
    return await fetch_row(connection, running) is None


async def find_pool(connection: AsyncConnection, task: str) -> str:
    """Find the pool that trains a task."""
    row = await fetch_row(connection, select(tasks.c.training).where(tasks.c.name == task))
    return (row["training"] if row else {}).get("pool") or DEFAULT_POOL


async def give_places(connection: AsyncConnection, found: Sequence[Round]) -> list[Round]:
    """Fill in the places of those that are queued, from 1 in the queue of their pool."""
    if not any(one.state is RoundState.QUEUED for one in found):
        return list(found)
    seen: dict[str, int] = {}
    places: dict[str, int] = {}
    for row in await fetch_rows(connection, queue_of()):
        seen[row["pool"]] = places[row["id"]] = seen.get(row["pool"], 0) + 1
    return [replace(one, place=places.get(one.id, 0)) for one in found]
