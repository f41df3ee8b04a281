"""Reads how rounds and workers are, in a few small queries: for `/metrics`, which asks every few seconds.

Ages are told by the database's clock. Open rounds are found by the index of states, and those that ended counted in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select

from server.domain import RoundState
from server.store.clock import UnixNow
from server.store.database import Database
from server.store.rows import fetch_rows
from server.store.tables import rounds, steps, trainers


@dataclass(frozen=True, slots=True)
class OpenRound:
    """A round that is queued or running, and for how long (seconds); `progress_s`: since it began or ended a step."""

    task: str
    pool: str
    state: str
    queued_s: float
    running_s: float
    heartbeat_s: float
    progress_s: float


@dataclass(frozen=True, slots=True)
class Vitals:
    """`rounds` are counted by state, living `trainers` by pool; `seen_s` is how old a pool's newest sign of life is."""

    rounds: Mapping[str, int]
    open: Sequence[OpenRound]
    trainers: Mapping[str, int]
    seen_s: Mapping[str, float]


class VitalsStore:
    """How the rounds and workers on one database are."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, live_within_s: float) -> Vitals:
        """Read it; a worker lives that said so within `live_within_s`. Raises: StoreUnavailable."""
        last_step = select(func.max(steps.c.created_at)).where(steps.c.round_id == rounds.c.id).scalar_subquery()
        now = UnixNow()
        open_ones = select(
            rounds.c.task,
            rounds.c.pool,
            rounds.c.state,
            (now - rounds.c.created_at).label("queued_s"),
            (now - rounds.c.started_at).label("running_s"),
            (now - rounds.c.heartbeat_at).label("heartbeat_s"),
            (now - func.coalesce(last_step, rounds.c.started_at)).label("progress_s"),
        ).where(rounds.c.state.in_([RoundState.QUEUED.value, RoundState.RUNNING.value]))
        counted = select(rounds.c.state, func.count().label("count")).group_by(rounds.c.state)
        seen = select(trainers.c.pool, (now - trainers.c.seen_at).label("seen_s"))
        async with self._database.read() as connection:
            states = {row["state"]: row["count"] for row in await fetch_rows(connection, counted)}
            found = [OpenRound(**row) for row in await fetch_rows(connection, open_ones)]
            ages = [(row["pool"], row["seen_s"]) for row in await fetch_rows(connection, seen)]
        pools = sorted({pool for pool, _ in ages})
        return Vitals(
            rounds={state.value: states.get(state.value, 0) for state in RoundState},
            open=found,
            trainers={pool: sum(one == pool and age <= live_within_s for one, age in ages) for pool in pools},
            seen_s={pool: min(age for one, age in ages if one == pool) for pool in pools},
        )
