"""A log that is there already becomes partitioned, and plain again, with all that is in it."""

import asyncio
import secrets
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from server.settings import LogSettings
from server.store import migrations
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.episodes import EpisodeStore
from server.store.months import MonthStore
from server.store.partitions import Month, border_id, include_on, is_partition, read_time
from server.store.retention import DAY_S, RetentionStore
from tests.fixtures.databases import execute, name_database
from tests.fixtures.episodes import make_episode

pytestmark = pytest.mark.postgres

INDEXES = (
    "SELECT indexdef FROM pg_indexes WHERE tablename IN ('episodes', 'attempts', 'reflections') ORDER BY indexname"
)
FOREIGN_KEYS = """
SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint
WHERE contype = 'f' AND conrelid::regclass::text ~ '^(attempts|reflections)' ORDER BY 1
"""
KIND = "SELECT relkind::text FROM pg_class WHERE relname = 'episodes'"


async def ask(url: str, statement: str) -> list[tuple]:
    database = Database(url)
    try:
        async with database.read() as connection:
            return [tuple(row) for row in await connection.execute(text(statement))]
    finally:
        await database.close()


async def record(url: str, spool: Path, *episodes) -> None:
    database = Database(url)
    log = EpisodeLog(database, LogSettings(), spool)
    await log.start()
    for episode in episodes:
        await log.record(episode)
    await log.stop()
    await database.close()


async def read_all(url: str) -> list:
    database = Database(url)
    try:
        return [episode async for episode in EpisodeStore(database).iterate()]
    finally:
        await database.close()


async def test_a_log_goes_there_and_back_with_all_that_is_in_it(
    postgres_server: str, postgres_url: str, tmp_path: Path
) -> None:
    name, template = f"mulligan_test_{secrets.token_hex(6)}", postgres_url.partition("?")[0].rsplit("/", 1)[1]
    execute(postgres_server, f"CREATE DATABASE {name} TEMPLATE {template}")
    url = name_database(postgres_server, name)
    try:
        now = time.time()
        times = [now - 400 * DAY_S, now - 40 * DAY_S, now, Month.of(now).plus(2).begins_at, now + 4000 * DAY_S]
        logged = [make_episode(id=f"{border_id(at)}{number:016x}") for number, at in enumerate(times)]
        await record(url, tmp_path / "spool", *logged)
        head = migrations.current(url)
        await asyncio.to_thread(migrations.downgrade, url, "0008")
        assert await ask(url, KIND) == [("r",)]
        assert await ask(url, "SELECT count(*) FROM attempts") == [(10,)]
        plain = await ask(url, INDEXES), await ask(url, FOREIGN_KEYS)
        assert len(plain[1]) == 2

        await asyncio.to_thread(migrations.upgrade, url)
        assert migrations.current(url) == head
        assert await ask(url, KIND) == [("p",)]
        assert await read_all(url) == logged
        database = Database(url)
        there = await MonthStore(database).read()
        this = Month.of(now)
        names = [f"before_{this.plus(1).name}", *(this.plus(step).name for step in (1, 2, 3)), "default"]
        assert [(one.name, one.rows) for one in there] == list(zip(names, (3, 0, 1, 0, 1), strict=True))

        # What is older goes row by row, what belongs to it by the foreign keys; later the partition goes whole.
        assert (await RetentionStore(database, 100, 0).prune(now)).episodes == 1
        assert await ask(url, "SELECT count(*) FROM reflections") == [(4,)]
        done = await RetentionStore(database, 100, 0).prune(this.plus(1).begins_at + 101 * DAY_S)
        assert (done.months, done.month_episodes) == ((names[0],), 2)
        assert await read_all(url) == logged[3:]
        await database.close()

        await asyncio.to_thread(migrations.downgrade, url, "0008")
        assert (await ask(url, INDEXES), await ask(url, FOREIGN_KEYS)) == plain
    finally:
        execute(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


def test_months_and_ids() -> None:
    november = Month.of(1_795_000_000)
    assert (november.name, november.plus(2).name, november.plus(-11).name) == ("2026_11", "2027_01", "2025_12")
    assert november.plus(1).begins_at - november.begins_at == 30 * DAY_S
    assert read_time(november.first_id) == november.begins_at
    assert november.first_id < make_episode(id=border_id(november.begins_at) + "0" * 16).id < november.plus(1).first_id
    assert read_time("ep_none") is None


def test_what_is_compared_with_the_tables() -> None:
    for name in ("episodes_2026_11", "attempts_default", "reflections_before_2026_12", "episodes_2026_01_to_drop"):
        assert is_partition(name)
        assert not include_on("postgresql")(None, name, "table", True, None)
        assert include_on("sqlite")(None, name, "table", True, None)
    for name in ("episodes", "round_episodes", "episodes_extra"):
        assert not is_partition(name)
        assert include_on("postgresql")(None, name, "table", True, None)
