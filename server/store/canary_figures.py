"""Reads from the log what a canary and its champion did, and what the champion did before. It never writes.

Called by `server.adapters.canary`. Only episodes that a conversation was drawn for count: who pins an adapter, or the
base model, has not been assigned by chance. Of a conversation only the first episode counts: all of it is with the same
adapter, so a hundred turns, or the same question asked a hundred times, would else be a hundred pieces of evidence.
"""

import math
from collections.abc import Sequence

from sqlalchemy import ColumnElement, Integer, Select, and_, case, cast, func, literal, select

from server.domain import Canary, CanaryCell, Outcome
from server.store.database import Database
from server.store.rows import fetch_rows
from server.store.tables import episodes

HOUR_S = 3600.0
BEFORE = 1000
"""So many of the champion's latest episodes say what it did before."""

BROKEN = (Outcome.ERRORED.value, Outcome.CANCELLED.value)
SOLVED = (Outcome.PASSED.value, Outcome.RECOVERED.value)


class CanaryFigures:
    """The log of one database, as canaries see it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read_cells(self, canary: Canary, slow_ms: float | None) -> list[CanaryCell]:
        """Count what both did since the canary began; `slow_ms` is the bound of what is slow (None: nothing is)."""
        statement = _cells(canary, slow_ms)
        async with self._database.read() as connection:
            rows = await fetch_rows(connection, statement)
        cells = [CanaryCell(canary=row.pop("adapter") == canary.adapter, **row) for row in rows]
        return sorted(cells, key=lambda cell: (cell.step, cell.hour, cell.canary))

    async def read_before(self, task: str, champion: str) -> dict[str, float]:
        """Read what the champion did before: of its latest episodes how many broke, failed, and the 95th percentile.

        `p95_ms` is there only where at least 20 episodes say so.
        """
        columns = (episodes.c.outcome, episodes.c.duration_ms)
        latest = (
            select(*columns)
            .where(episodes.c.adapter == champion, episodes.c.task == task, episodes.c.model == task)
            .order_by(episodes.c.id.desc())
            .limit(BEFORE)
        )
        async with self._database.read() as connection:
            rows = await fetch_rows(connection, latest)
        outcomes = [row["outcome"] for row in rows]
        durations = sorted(row["duration_ms"] for row in rows if row["outcome"] not in BROKEN)
        found = {
            "episodes": len(rows),
            "broken": sum(outcome in BROKEN for outcome in outcomes),
            "passed": sum(outcome in SOLVED for outcome in outcomes),
            "failed": outcomes.count(Outcome.EXHAUSTED.value),
        }
        return found | ({"p95_ms": find_percentile(durations, 0.95)} if len(durations) >= 20 else {})


def find_percentile(ordered: Sequence[float], share: float) -> float:
    """Find the smallest value that at least this share of ordered values does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _cells(canary: Canary, slow_ms: float | None) -> Select:
    border = f"ep_{int(canary.started_at * 1000):012x}"  # ids begin with the millisecond that they were made in
    ours = and_(
        episodes.c.task == canary.task,
        episodes.c.adapter.in_((canary.adapter, canary.champion)),
        episodes.c.id >= border,
        episodes.c.conversation != "",
    )
    first = select(func.min(episodes.c.id).label("id")).where(ours).group_by(episodes.c.conversation).subquery("first")
    later = [episodes.c.created_at >= step.since for step in canary.steps[1:]]
    step = sum((case((begun, 1), else_=0) for begun in later), literal(0)).label("step")
    hour = cast((episodes.c.created_at - canary.started_at) / HOUR_S, Integer).label("hour")
    broke = episodes.c.outcome.in_(BROKEN)
    slow = and_(~broke, episodes.c.duration_ms > slow_ms) if slow_ms is not None else None
    kinds = (step, hour, episodes.c.adapter)
    inner = (
        select(
            *kinds,
            case((broke, 1), else_=0).label("broken"),
            (case((slow, 1), else_=0) if slow is not None else literal(0)).label("slow"),
            case((episodes.c.outcome.in_(SOLVED), 1), else_=0).label("passed"),
            case((episodes.c.outcome == Outcome.EXHAUSTED.value, 1), else_=0).label("failed"),
        )
        .join(first, episodes.c.id == first.c.id)
        .subquery("each")
    )
    by: list[ColumnElement] = [inner.c.step, inner.c.hour, inner.c.adapter]
    sums = [cast(func.sum(inner.c[name]), Integer).label(name) for name in ("broken", "slow", "passed", "failed")]
    return select(*by, func.count().label("episodes"), *sums).group_by(*by)
