"""Fills a database with episodes as the loop makes them: some hundred are made, and the server copies them.

Each copy gets an id, a time, a key, an adapter and a problem of its own, spread over the same half year however many
there are; texts are random letters. All that is measured grows with these. The log's own writer is not used here: it
would take an hour.
"""

# ruff: noqa: S608 - the names in these statements are our own

import asyncio
import dataclasses
import random
import time
from collections.abc import Callable
from typing import Any

import asyncpg
from sqlalchemy import make_url

from bench.episode_bytes import letters, make_passed, make_recovered
from server.domain import Adapter, AdapterStatus, Episode, Event, Outcome, Task, VerdictCount
from server.store import migrations
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.episode_rows import COLUMNS, TABLES, encode_episode
from server.store.events import EventStore
from server.store.months import MonthStore
from server.store.partitions import Month
from server.store.retention import DAY_S
from server.store.tasks import TaskStore
from server.store.verdict_counts import VerdictCountStore

DAYS = 180
TASKS = ("sql", "tools", "sums", "support", "seldom")
TASK_SHARES = (60, 20, 12, 7, 1)
OUTCOMES = (
    Outcome.PASSED,
    Outcome.RECOVERED,
    Outcome.EXHAUSTED,
    Outcome.UNVERIFIED,
    Outcome.CANCELLED,
    Outcome.ERRORED,
)
OUTCOME_SHARES = (61, 12, 17, 8, 1, 1)
TEMPLATES = 600
KEYS = 40
ADAPTERS = 12
CHUNK = 25_000

LEFT = "i * 20 / :n = 3 AND i % 3 = 0"  # a key that was busy once, and asks no more
# What of a copy is its own: `i` is its number of `n`, `o` that of its problem, `t` the episode that it copies.
OWN = {
    "episodes": {
        "id": "{id}",
        "created_at": "{at}",
        "key": f"CASE WHEN {LEFT} THEN 'key_left' ELSE 'key_' || abs(hashint8(i + 1)::bigint) % {KEYS} END",
        "adapter": "{adapter}",
        "split": "CASE WHEN o % 5 = 0 THEN 'held_out' ELSE 'training' END",
        "problem": "md5(o::text)",
    },
    "attempts": {"episode_id": "{id}", "adapter": "{adapter}", "started_at": "{at}"},
    "reflections": {"episode_id": "{id}", "adapter": "{adapter}", "started_at": "{at}"},
}
ID = "'ep_' || lpad(to_hex(:start::bigint + i * :span / :n), 12, '0') || lpad(to_hex(i), 16, '0')"
AT = "(:start::bigint + i * :span / :n) / 1000.0"
ADAPTER = f"CASE WHEN i * {ADAPTERS} / :n = 0 THEN '' ELSE t_task || '@' || i * {ADAPTERS} / :n END"
PROBLEM = "(hashint8(i)::bigint & 2147483647) % (:n * 7 / 10)"  # some are asked again


async def fill(url: str, count: int, tell: Callable[[str], None]) -> None:
    """Migrate an empty database and fill it."""
    await asyncio.to_thread(migrations.upgrade, url)
    database = Database(url)
    try:
        now = time.time()
        await MonthStore(database).make(Month.of(now - DAYS * DAY_S), 8)
        await _fill_beside(database, now)
        connection = await asyncpg.connect(_plain(url))
        try:
            await _copy_templates(connection)
            await _multiply(connection, count, now, tell)
        finally:
            await connection.close()
    finally:
        await database.close()


def _plain(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


async def _fill_beside(database: Database, now: float) -> None:
    """Add what there is as much of in every log: tasks, adapters, promotions, counts of verdicts."""
    for task in TASKS:
        await TaskStore(database).create(Task(task))
        for number in range(1, ADAPTERS):
            name, at = f"{task}@{number}", now - DAYS * DAY_S * (1 - number / ADAPTERS)
            made = Adapter(name, task, "", {}, status=AdapterStatus.CHAMPION, created_at=at)
            await AdapterStore(database).add(made)
            await EventStore(database).add(Event("adapter.promoted", name, created_at=at))
    hours = range(int(now // 3600) - 24 * 30, int(now // 3600))
    counts = [
        VerdictCount(verifier=f"{task}@1", hour=hour, status=status, cause="", count=5, total_ms=9.0, slowest_ms=3.0)
        for task in TASKS
        for hour in hours
        for status in ("passed", "failed")
    ]
    await VerdictCountStore(database).add(counts)


def make_template() -> Episode:
    """Make an episode to be copied."""
    (task,) = random.choices(TASKS, TASK_SHARES)
    (outcome,) = random.choices(OUTCOMES, OUTCOME_SHARES)
    made = make_recovered() if outcome in (Outcome.RECOVERED, Outcome.EXHAUSTED) else make_passed()
    binding = dataclasses.replace(made.bindings[0], name=task, args={"reference": letters(30)})
    status = {Outcome.PASSED: "passed", Outcome.RECOVERED: "passed", Outcome.EXHAUSTED: "failed"}.get(outcome, "")
    last = dataclasses.replace(made.attempts[-1], status=status or "abstained")
    first = made.attempts[:-1]
    return dataclasses.replace(
        made, task=task, model=task, outcome=outcome, bindings=(binding,), attempts=[*first, last]
    )


async def _copy_templates(connection: Any) -> None:
    rows: list[list[tuple[Any, ...]]] = [[], [], []]
    for number in range(TEMPLATES):
        made = encode_episode(make_template())
        task = made.episode[COLUMNS[0].index("task")]
        for place, some in enumerate(((made.episode,), made.attempts, made.reflections)):
            rows[place] += [(number, task, *row) for row in some]
    for place, table in enumerate(TABLES):
        await connection.execute(
            f"CREATE UNLOGGED TABLE t_{table.name} AS SELECT 0 AS t, '' AS t_task, * FROM {table.name} LIMIT 0"
        )
        columns = ["t", "t_task", *COLUMNS[place]]
        await connection.copy_records_to_table(f"t_{table.name}", records=rows[place], columns=columns)
        await connection.execute(f"ANALYZE t_{table.name}")


async def _multiply(connection: Any, count: int, now: float, tell: Callable[[str], None]) -> None:
    span = int(DAYS * DAY_S * 1000)
    values = {":start": str(int(now * 1000) - span), ":span": str(span), ":n": str(count)}
    await connection.execute("SET session_replication_role = replica")  # what is copied fits together
    await connection.execute("SET synchronous_commit = off")
    for begin in range(0, count, CHUNK):
        end = min(count, begin + CHUNK) - 1
        for place, table in enumerate(TABLES):
            own = {name: how.format(id=ID, at=AT, adapter=ADAPTER) for name, how in OWN[str(table.name)].items()}
            what = ", ".join(own.get(name, f"c.{name}") for name in COLUMNS[place])
            numbers = (
                f"SELECT i, {PROBLEM} AS o, i * 7919 % {TEMPLATES} AS t FROM generate_series({begin}::bigint, {end}) i"
            )
            statement = (
                f"INSERT INTO {table.name} ({', '.join(COLUMNS[place])}) SELECT {what} "
                f"FROM ({numbers}) AS made JOIN t_{table.name} c USING (t)"
            )
            for name, value in values.items():
                statement = statement.replace(name, value)
            await connection.execute(statement)
        tell(f"{end + 1:,} of {count:,} episodes")
    saying = "INSERT INTO feedback SELECT id, 'bench', 'key_1', outcome = 'passed', NULL, '', false, created_at"
    await connection.execute(f"{saying} FROM episodes WHERE abs(hashtext(id)) % 100 = 0")
    await connection.execute(f"DROP TABLE {', '.join(f't_{table.name}' for table in TABLES)}")
    await connection.execute("VACUUM (ANALYZE)")
    await connection.execute("CHECKPOINT")
