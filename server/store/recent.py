"""Reads what the log says of the last hours: how episodes ended, by slots of time, and what the newest took.

Called by the API for the dashboard. Bounded whatever the log's size: counts come from the index of outcomes alone,
`MOST` episodes of each outcome at the most, and what needs the rows themselves comes from the newest `SAMPLE`. It never
writes.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Table, func, literal, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain import Outcome
from server.store.database import Database
from server.store.partitions import border_id, read_time
from server.store.rows import fetch_rows
from server.store.tables import attempts, episodes, reflections

MOST = 20_000
SAMPLE = 2000
ANSWERED = frozenset({Outcome.PASSED, Outcome.RECOVERED, Outcome.EXHAUSTED, Outcome.UNVERIFIED})
"""The outcomes whose time is one that a client waited for an answer."""

_PREFIX = len(border_id(0))


@dataclass(frozen=True, slots=True)
class Slot:
    """How many episodes that began in a stretch of time (`at`, Unix seconds) ended in which way."""

    at: float
    outcomes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Ended:
    """How episodes ended. `bounded`: there are more, and the oldest are not counted."""

    slots: Sequence[Slot]
    slot_s: float
    bounded: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """What the newest episodes took: `size` of them, milliseconds of those that were answered, tokens of all."""

    size: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    by_task: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # task -> outcome -> episodes


class RecentStore:
    """The last hours of one database's log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def count_outcomes(self, since: float, *, digits: int, most: int = MOST) -> Ended:
        """Count how the episodes since then ended, in slots of 16 ** `digits` milliseconds."""
        start = func.substr(episodes.c.id, 1, _PREFIX - digits).label("start")
        counts = []
        for outcome in Outcome:
            # As a range, ordered by both columns: so the index of outcomes is read, and nothing but it.
            found = (
                select(start)
                .where(episodes.c.outcome.between(outcome.value, outcome.value), episodes.c.id >= border_id(since))
                .order_by(episodes.c.outcome.desc(), episodes.c.id.desc())
                .limit(most)
                .subquery()
            )
            columns = (literal(outcome.value).label("outcome"), found.c.start, func.count().label("count"))
            counts.append(select(*columns).group_by(found.c.start))
        async with self._database.read() as connection:
            rows = await fetch_rows(connection, union_all(*counts))
        slots: dict[str, Counter[str]] = defaultdict(Counter)
        totals: Counter[str] = Counter()
        for row in rows:
            slots[row["start"]][row["outcome"]] += row["count"]
            totals[row["outcome"]] += row["count"]
        bounded = any(total >= most for total in totals.values())
        begun = [Slot(_read_start(start, digits), counts) for start, counts in sorted(slots.items())]
        return Ended(begun, 16**digits / 1000, bounded)

    async def sample(self, since: float, *, most: int = SAMPLE) -> Sample:
        """Look at the newest episodes since then."""
        columns = (episodes.c.id, episodes.c.task, episodes.c.outcome, episodes.c.duration_ms)
        newest = select(*columns).where(episodes.c.id >= border_id(since)).order_by(episodes.c.id.desc()).limit(most)
        async with self._database.read() as connection:
            rows = await fetch_rows(connection, newest)
            if not rows:
                return Sample()
            tokens = [await _sum_tokens(connection, table, rows[-1]["id"]) for table in (attempts, reflections)]
        times = sorted(row["duration_ms"] for row in rows if row["outcome"] in ANSWERED)
        by_task: dict[str, Counter[str]] = defaultdict(Counter)
        for row in rows:
            by_task[row["task"]][row["outcome"]] += 1
        return Sample(
            size=len(rows),
            p50_ms=_find_percentile(times, 0.5),
            p95_ms=_find_percentile(times, 0.95),
            prompt_tokens=sum(prompt for prompt, _ in tokens),
            completion_tokens=sum(completion for _, completion in tokens),
            by_task=by_task,
        )


async def _sum_tokens(connection: AsyncConnection, table: Table, first_id: str) -> tuple[int, int]:
    """Add up the prompt and completion tokens of what belongs to an episode or to one that is newer."""
    sums = [func.coalesce(func.sum(table.c[name]), 0).label(name) for name in ("prompt_tokens", "completion_tokens")]
    (row,) = await fetch_rows(connection, select(*sums).where(table.c.episode_id >= first_id))
    return int(row["prompt_tokens"]), int(row["completion_tokens"])


def _read_start(start: str, digits: int) -> float:
    return read_time(start + "0" * digits) or 0.0


def _find_percentile(ordered: Sequence[float], share: float) -> float | None:
    """Find the smallest value that at least `share` of all are no bigger than."""
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)] if ordered else None
