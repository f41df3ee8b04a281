"""What is asked of the log: by rounds, by the dashboard and the API, by audits; each through the store that asks."""

import json
import re
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event

from bench.million.fill import ADAPTERS, DAYS
from server.store.agreement import measure_agreement
from server.store.audit import AuditStore
from server.store.database import Database
from server.store.episodes import EpisodeStore
from server.store.feedback import FeedbackStore
from server.store.lineage import LineageStore
from server.store.partitions import border_id
from server.store.progress import ProgressStore
from server.store.recent import RecentStore
from server.store.retention import DAY_S
from server.store.verdict_counts import VerdictCountStore

BIG, SMALL_TASK = "sql", "seldom"
WANTED = 300
"""Failures that a round asks for here: so many the small log has as well."""

FEW_ROWS = 500
"""A table with fewer is read whole, and rightly so."""

WARM_UP = 3
"""The first answers fill caches, ours and the server's, and do not count."""

LEAST_MS, MOST_REPEATS = 2000, 60
"""What is quick is asked more often than what is slow: a busy machine disturbs it more."""

MANY_ROWS = 5000
"""More of one month than any question is about."""

TAKES_ALL = frozenset({"Sort", "Aggregate", "Hash", "HashAggregate", "WindowAgg", "Unique"})
"""What reads all that is below it before it gives anything, so that a limit above does not help."""

Ask = Callable[[], Awaitable[object]]


def list_questions(database: Database, now: float) -> Mapping[str, Ask]:
    """List the questions by name."""
    episodes, progress, audits = EpisodeStore(database), ProgressStore(database), AuditStore(database)
    middle, lately = border_id(now - DAYS / 2 * DAY_S), now - DAY_S * DAYS / 10
    champion = f"{BIG}@{ADAPTERS - 1}"
    return {
        "round: failures": lambda: episodes.failures(BIG, limit=WANTED),
        "round: new failures": lambda: episodes.failures(BIG, since=lately, limit=100),
        "round: older failures": lambda: episodes.failures(BIG, until=lately, limit=WANTED),
        "round: what is left out": lambda: episodes.count_left_out(BIG, since=lately),
        "round: is it due": lambda: episodes.count_failures(BIG, most=200),
        "gate: held-out problems": lambda: episodes.held_out(BIG, limit=200),
        "progress: problems": lambda: progress.count_problems(BIG, (), most=200),
        "progress: failures": lambda: progress.count_failures(BIG, since=0.0, most=500),
        "progress: known problems": lambda: progress.find_logged(BIG, [f"{number:032x}" for number in range(200)]),
        "page: newest": lambda: episodes.list(limit=50),
        "page: in the middle": lambda: episodes.list(limit=50, before=middle),
        "page: a task": lambda: episodes.list(task=BIG, limit=50, before=middle),
        "page: a small task": lambda: episodes.list(task=SMALL_TASK, limit=50, before=middle),
        "page: an outcome": lambda: episodes.list(outcome="exhausted", limit=50, before=middle),
        "page: a rare outcome": lambda: episodes.list(outcome="errored", limit=20, before=middle),
        "page: a task's outcome": lambda: episodes.list(task=BIG, outcome="recovered", limit=50, before=middle),
        "page: a task's rare outcome": lambda: episodes.list(task=BIG, outcome="errored", limit=20),
        "page: a key": lambda: episodes.list(key="key_7", limit=50, before=middle),
        "page: a key's outcome": lambda: episodes.list(key="key_7", outcome="exhausted", limit=20),
        "page: feedback": lambda: episodes.list(said="failed", limit=10),
        "page: no feedback": lambda: episodes.list(said="none", task=BIG, limit=50),
        "feedback: newest": lambda: FeedbackStore(database).list(limit=50),
        "adapter: what it served": lambda: LineageStore(database).trace(champion),
        "adapter: its accuracy": lambda: episodes.count_outcomes(champion, most=500),
        "adapter: an old one's": lambda: LineageStore(database).trace(f"{BIG}@2"),
        "adapter: an old one's accuracy": lambda: episodes.count_outcomes(f"{BIG}@2", most=500),
        "page: a key that left": lambda: episodes.list(key="key_left", limit=50),
        "audit: a task's end": lambda: audits.find_newest("nothing is left of it"),
        "verifier: its counts": lambda: VerdictCountStore(database).list(BIG, since_hour=int(now // 3600) - 24 * 7),
        "verifier: agreement": lambda: measure_agreement(database, BIG, 2, 1, tasks=(BIG,), limit=500),
        "overview: outcomes": lambda: RecentStore(database).count_outcomes(now - 7 * DAY_S, digits=6),
        "overview: newest": lambda: RecentStore(database).sample(now - 7 * DAY_S, most=500),
        "audit: window": lambda: audits.read_window(BIG, 500),
        "audit: a promotion": lambda: audits.read_promotion(BIG, f"{BIG}@6"),
        "audit: newest": lambda: audits.find_newest(BIG),
    }


@dataclass(frozen=True, slots=True)
class Cost:
    """What one question took in each log, medians in milliseconds, and the median of their ratios."""

    name: str
    small_ms: float
    large_ms: float
    growth: float


async def compare(small: Mapping[str, Ask], large: Mapping[str, Ask], repeats: int) -> list[Cost]:
    """Ask both logs each question in turn, so that what else this machine does hits both."""
    costs: list[Cost] = []
    for name in small:
        took: tuple[list[float], list[float]] = ([], [])
        while len(took[0]) < WARM_UP + repeats or (sum(took[0]) < LEAST_MS and len(took[0]) < MOST_REPEATS):
            for place, ask in enumerate((small[name], large[name])):
                began = time.perf_counter()
                await ask()
                took[place].append((time.perf_counter() - began) * 1000)
        took = (took[0][WARM_UP:], took[1][WARM_UP:])
        growth = statistics.median(large / small for small, large in zip(*took, strict=True))
        costs.append(Cost(name, statistics.median(took[0]), statistics.median(took[1]), growth))
    return costs


async def find_scans(database: Database, questions: Mapping[str, Ask], *, small: bool = False) -> dict[str, list[str]]:
    """Find which questions make the server read a whole table of the log; each with those tables.

    In a `small` log the server does so where an index would serve as well: then it is asked what it would do if
    that were dear, and an index that is read from end to end counts as a table.
    """
    found: dict[str, list[str]] = {}
    for name, ask in questions.items():
        seen: list[tuple[str, Any]] = []

        def remember(_c: Any, _cursor: Any, said: str, given: Any, _context: Any, _many: bool, to: Any = seen) -> None:
            to.append((said, given))

        event.listen(database.engine.sync_engine, "before_cursor_execute", remember)
        try:
            await ask()
        finally:
            event.remove(database.engine.sync_engine, "before_cursor_execute", remember)
        async with database.read() as connection:
            await connection.exec_driver_sql(f"SET LOCAL enable_seqscan = {'off' if small else 'on'}")
            for said, given in seen:
                if said.startswith(("SELECT", "WITH")):
                    plan = (await connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {said}", given)).scalar_one()
                    plan = json.loads(plan) if isinstance(plan, str) else plan
                    found.setdefault(name, []).extend(_list_scans(plan[0]["Plan"], limited=False))
    return {name: scans for name, scans in found.items() if scans}


def _list_scans(plan: Mapping[str, Any], *, limited: bool) -> list[str]:
    """List the tables that a plan reads whole, or much of; what a limit cuts short, it reads little of."""
    kind = str(plan["Node Type"])
    limited = kind == "Limit" or (limited and kind not in TAKES_ALL)
    scans = [one for below in plan.get("Plans", ()) for one in _list_scans(below, limited=limited)]
    table, rows = str(plan.get("Relation Name", "")), plan["Plan Rows"]
    if limited or not re.match(r"(episodes|attempts|reflections)_", table):
        return scans + [table] * (limited and kind == "Seq Scan" and rows >= FEW_ROWS)
    whole = kind == "Seq Scan" or (kind.startswith("Index") and "Index Cond" not in plan)
    return scans + [table] * (rows >= (FEW_ROWS if whole else MANY_ROWS))
