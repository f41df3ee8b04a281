"""Measures how far two versions of a verifier agree, from the attempts in the log that both of them judged.

Called by the API and the command line. It reads the newest attempts only, a few hundred at a time.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from sqlalchemy import select

from server.store.database import Database
from server.store.newest import newest_first
from server.store.rows import Row, fetch_rows
from server.store.tables import attempts, episodes

NEWEST_ATTEMPTS = 2000
MOST_ATTEMPTS = 20_000
MOST_FLIPS = 20
_AT_ONCE = 200  # episodes whose verdicts are in memory together: they carry reasons and what code printed
_PASSED, _FAILED, _ABSTAINED, _SKIPPED = "passed", "failed", "abstained", "skipped"


@dataclass(frozen=True, slots=True)
class Flip:
    """An attempt on which the two versions differ; `old` and `new` are what they said."""

    episode_id: str
    attempt: int
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two versions judged the same attempts.

    `read` attempts were looked at, newest first; both versions stand on `both` of them; both passed or failed `n` of
    those. `agreement` is `agree / n`, None where n is 0. The newest `flips` are listed, at most 20.
    """

    verifier: str
    version: int
    compared_with: int
    tasks: tuple[str, ...]
    read: int
    both: int
    n: int
    agree: int
    agreement: float | None
    both_passed: int
    both_failed: int
    only_new_passed: int
    only_old_passed: int
    new_abstained: int
    old_abstained: int
    skipped: int
    flips: tuple[Flip, ...]


@dataclass
class _Tally:
    new: str  # the pins
    old: str
    read: int = 0
    pairs: dict[tuple[str, str], int] = field(default_factory=dict)
    flips: list[Flip] = field(default_factory=list)

    def take(self, row: Row) -> None:
        self.read += 1
        said: dict[str, str] = {}
        for verdict in row["verdicts"]:
            said.setdefault(verdict["verifier"], verdict["status"])
        if self.new not in said or self.old not in said:
            return
        pair = said[self.new], said[self.old]
        self.pairs[pair] = self.pairs.get(pair, 0) + 1
        if set(pair) == {_PASSED, _FAILED} and len(self.flips) < MOST_FLIPS:
            self.flips.append(Flip(row["episode_id"], row["number"], old=pair[1], new=pair[0]))

    def count(self, new: Sequence[str], old: Sequence[str]) -> int:
        return sum(self.pairs.get((one, other), 0) for one in new for other in old)


async def measure_agreement(
    database: Database,
    name: str,
    new: int,
    old: int,
    *,
    tasks: Sequence[str] = (),
    limit: int = NEWEST_ATTEMPTS,
) -> Agreement:
    """Compare version `new` with version `old` on the newest `limit` attempts of these tasks; of all, where none is."""
    tally = _Tally(f"{name}@{new}", f"{name}@{old}")
    async for row in _read_newest(database, tasks, limit):
        tally.take(row)
    anything = (_PASSED, _FAILED, _ABSTAINED, _SKIPPED)
    judged = (_PASSED, _FAILED)
    n = tally.count(judged, judged)
    both_passed, both_failed = tally.count([_PASSED], [_PASSED]), tally.count([_FAILED], [_FAILED])
    return Agreement(
        verifier=name,
        version=new,
        compared_with=old,
        tasks=tuple(tasks),
        read=tally.read,
        both=tally.count(anything, anything),
        n=n,
        agree=both_passed + both_failed,
        agreement=(both_passed + both_failed) / n if n else None,
        both_passed=both_passed,
        both_failed=both_failed,
        only_new_passed=tally.count([_PASSED], [_FAILED]),
        only_old_passed=tally.count([_FAILED], [_PASSED]),
        new_abstained=tally.count([_ABSTAINED], anything),
        old_abstained=tally.count(anything, [_ABSTAINED]),
        skipped=sum(count for pair, count in tally.pairs.items() if _SKIPPED in pair),
        flips=tuple(tally.flips),
    )


async def _read_newest(database: Database, tasks: Sequence[str], limit: int) -> AsyncIterator[Row]:
    """Go through the newest attempts, those of the newest episode first; no transaction is held between batches."""
    ids = await _find_newest(database, tasks, limit)
    columns = (attempts.c.episode_id, attempts.c.number, attempts.c.verdicts)
    left = limit
    for start in range(0, len(ids), _AT_ONCE):
        statement = (
            select(*columns)
            .where(attempts.c.episode_id.in_(ids[start : start + _AT_ONCE]))
            .order_by(attempts.c.episode_id.desc(), attempts.c.number.desc())
            .limit(left)
        )
        async with database.read() as connection:
            rows = await fetch_rows(connection, statement)
        for row in rows:
            yield row
        left -= len(rows)
        if left <= 0:
            return


async def _find_newest(database: Database, tasks: Sequence[str], limit: int) -> list[str]:
    """List the ids of the newest episodes. One task at a time: so an index gives each list, however long the log is."""
    ids = select(episodes.c.id).limit(limit)
    found: set[str] = set()
    of_tasks = [newest_first(ids, episodes.c.task, task) for task in tasks]
    async with database.read() as connection:
        for statement in of_tasks or [ids.order_by(episodes.c.id.desc())]:
            found |= {row["id"] for row in await fetch_rows(connection, statement)}
    return sorted(found, reverse=True)[:limit]
