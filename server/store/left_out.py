"""Counts what a round's selection leaves out without reading it: what the log's own columns rule out.

Called by the episode store. It looks at the newest `MOST` episodes of the task at most, so that its cost does not grow
with the log.
"""

from collections import Counter

from sqlalchemy import case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain import Outcome
from server.store.newest import newest_first
from server.store.rows import Row, fetch_rows
from server.store.tables import attempts, episodes

MOST = 5000

HELD_OUT = "kept for the gate (held out)"
NOT_STORED = "its content was not to be kept (store: false)"
OPTED_OUT = "its key opted out of training, or the redactor changed it"
ABSTAINED = "its verifier abstained"
SKIPPED = "its verifier did not apply (skipped)"
UNJUDGED = "no verifier judged it"
CUT_OFF = "it was cancelled, or broke off"

_FAILED = (Outcome.RECOVERED.value, Outcome.EXHAUSTED.value)
_CUT_OFF = (Outcome.CANCELLED.value, Outcome.ERRORED.value)


async def count_left_out(connection: AsyncConnection, task: str, since: float) -> dict[str, int]:
    """Count the episodes made after `since` (Unix seconds) that no round may select, by the reason in words."""
    columns = (episodes.c.id, episodes.c.split, episodes.c.store, episodes.c.trains, episodes.c.outcome)
    of_task = newest_first(select(*columns, episodes.c.created_at), episodes.c.task, task)
    newest = of_task.limit(MOST).subquery("newest")
    # Only of what nobody judged does the first attempt say more: the others need no look at their attempts.
    first = select(attempts.c.status).where(attempts.c.episode_id == newest.c.id, attempts.c.number == 1)
    unverified = newest.c.outcome == Outcome.UNVERIFIED.value
    status = case((unverified, first.scalar_subquery()), else_=None).label("status")
    kinds = (newest.c.split, newest.c.store, newest.c.trains, newest.c.outcome)
    passed_over = (newest.c.created_at > since, newest.c.outcome != Outcome.PASSED.value)
    some = select(*kinds, status).where(*passed_over).subquery("some_of_them")
    statement = select(some, func.count().label("count")).group_by(*some.c)
    counted: Counter[str] = Counter()
    for row in await fetch_rows(connection, statement):
        if reason := _find_reason(row):
            counted[reason] += row["count"]
    return dict(counted)


def _find_reason(row: Row) -> str | None:
    """Say why rows like this one are never selected; None where they may be."""
    failed = row["outcome"] in _FAILED
    if row["split"] == "held_out":
        return HELD_OUT if failed else None
    if not row["store"]:
        return NOT_STORED
    if not row["trains"]:
        return OPTED_OUT
    if row["outcome"] in _CUT_OFF:
        return CUT_OFF
    return None if failed else {"abstained": ABSTAINED, "skipped": SKIPPED}.get(row["status"], UNJUDGED)
