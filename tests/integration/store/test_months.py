"""The log's months on PostgreSQL: made ahead, dropped whole, never needed by who writes."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from server.domain import Outcome, Task
from server.settings import LogSettings
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.episodes import EpisodeStore
from server.store.months import MonthStore
from server.store.partitions import Month, border_id
from server.store.retention import DAY_S, RetentionStore
from server.store.tasks import TaskStore
from tests.fixtures.databases import execute, name_database
from tests.fixtures.episodes import make_episode

pytestmark = pytest.mark.postgres


@pytest.fixture
async def database(postgres_server: str, postgres_url: str) -> AsyncIterator[Database]:
    """A database of its own, a copy of the migrated one: these tests change its tables."""
    name, template = f"mulligan_test_{secrets.token_hex(6)}", postgres_url.partition("?")[0].rsplit("/", 1)[1]
    execute(postgres_server, f"CREATE DATABASE {name} TEMPLATE {template}")
    opened = Database(name_database(postgres_server, name))
    yield opened
    await opened.close()
    execute(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def log(database: Database, tmp_path: Path) -> AsyncIterator[EpisodeLog]:
    opened = EpisodeLog(database, LogSettings(), tmp_path / "spool")
    await opened.start()
    yield opened
    await opened.stop()


def made(at: float, number: int = 0, **changes):
    return make_episode(id=f"{border_id(at)}{number:016x}", **changes)


async def count_by_partition(database: Database, table: str = "episodes") -> dict[str, int]:
    async with database.read() as connection:
        rows = await connection.execute(text(f"SELECT tableoid::regclass::text, count(*) FROM {table} GROUP BY 1"))
        return {name.removeprefix(f"{table}_"): count for name, count in rows}


async def test_a_new_log_has_its_months_and_the_next_ones(database: Database, log: EpisodeLog) -> None:
    this = Month.of(time.time())
    names = [one.name for one in await MonthStore(database).read()]
    assert names == [*(this.plus(step).name for step in range(4)), "default"]
    await log.record(made(time.time()))
    for table in ("episodes", "attempts", "reflections"):
        assert set(await count_by_partition(database, table)) == {this.name}


async def test_months_are_made_once_and_nobody_waits_for_them(database: Database, log: EpisodeLog) -> None:
    this = Month.of(time.time())
    far = this.plus(7)
    early = [made(far.begins_at + 60, number) for number in range(5)]  # by a clock that is far ahead
    for episode in early:
        await log.record(episode)
    assert await count_by_partition(database) == {"default": 5}
    store = MonthStore(database)
    made_by = await asyncio.gather(*(MonthStore(database).make(this.plus(4), 4) for _ in range(3)))
    names = [name for names in made_by for name in names]
    assert len(names) == len(set(names))  # none by two
    await store.make(this.plus(4), 4)
    assert await store.make(this.plus(4), 4) == []
    assert await count_by_partition(database) == {far.name: 5}  # what was there was moved, with what belongs to it
    assert await count_by_partition(database, "attempts") == {far.name: 10}
    assert await EpisodeStore(database).get(early[3].id) == early[3]


async def test_a_month_that_the_default_partition_is_full_of_is_left_there(
    database: Database, log: EpisodeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.store.months.MOST_MOVED", 4)
    far = Month.of(time.time()).plus(7)
    for number in range(5):
        await log.record(made(far.begins_at, number))
    assert await MonthStore(database).make(far, 2) == [far.plus(1).name]
    assert await count_by_partition(database) == {"default": 5}


async def test_months_go_whole_and_what_the_gate_needs_stays(database: Database, log: EpisodeLog) -> None:
    now = Month.of(time.time()).begins_at + 10 * DAY_S
    this = Month.of(now)
    await MonthStore(database).make(this.plus(-3), 3)
    await TaskStore(database).create(Task("a"))
    kept = made(this.plus(-3).begins_at + 5, 1, task="a", split="held_out", outcome=Outcome.RECOVERED)
    others = [made(this.plus(-back).begins_at + 9, back) for back in (3, 2, 1, 0)]
    for episode in [kept, *others]:
        await log.record(episode)
    store = RetentionStore(database, 35, 5)
    status = await store.read_status(now)
    assert (status.past_limit, status.kept, status.next_what) == (2, 1, f"the month {this.plus(-3).name}, whole")
    assert (await store.plan(now)).months == (this.plus(-3).name, this.plus(-2).name)
    done = await store.prune(now)
    assert (done.months, done.more) == ((this.plus(-3).name, this.plus(-2).name), False)
    assert await count_by_partition(database) == {"default": 1, this.plus(-1).name: 1, this.name: 1}
    assert await count_by_partition(database, "reflections") == {"default": 1, this.plus(-1).name: 1, this.name: 1}
    assert await EpisodeStore(database).get(kept.id) == kept
    async with database.read() as connection:
        left = await connection.execute(text("SELECT relname FROM pg_class WHERE relname LIKE '%to_drop'"))
        assert left.all() == []


async def test_what_a_dead_process_had_detached_is_dropped(database: Database) -> None:
    months = MonthStore(database)
    oldest = (await months.read())[0]
    assert await months._detach(oldest.name, [])
    assert await months.sweep() == 3
    assert await months.sweep() == 0


async def test_who_holds_the_log_is_waited_for_briefly_and_holds_up_nobody(
    database: Database, log: EpisodeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.store.months.TRIES", 2)
    monkeypatch.setattr("server.store.months.PAUSE_S", 0.05)
    months = MonthStore(database)
    oldest = (await months.read())[0]
    async with database.engine.connect() as reader:
        await reader.execute(text("SELECT count(*) FROM episodes"))  # an open transaction, as a dump's
        dropping = asyncio.create_task(months.drop(oldest))
        await asyncio.sleep(0.1)
        await asyncio.wait_for(log.record(made(time.time())), 5)
        assert await dropping is False
        assert not log.spooling
    assert len(await months.read()) == 5
    assert await months.drop(oldest)
    assert (await months.read())[0].name == Month.of(time.time()).plus(1).name


async def test_writers_and_readers_go_on_while_months_come_and_go(database: Database, log: EpisodeLog) -> None:
    this = Month.of(time.time())
    months = MonthStore(database)
    episodes, stop = EpisodeStore(database), asyncio.Event()
    written = 0

    async def write() -> None:
        nonlocal written
        while not stop.is_set():
            await log.record(make_episode())
            written += 1

    async def read() -> None:
        while not stop.is_set():
            await episodes.list(limit=5)
            await episodes.failures("countdown", limit=5)

    work = [asyncio.create_task(part()) for part in (write, write, read, read)]
    for back in range(1, 4):
        await months.make(this.plus(-back), 1)
    for partition in [one for one in await months.read() if one.past and one.past <= this.first_id]:
        assert await months.drop(partition)
    stop.set()
    await asyncio.gather(*work)
    assert await episodes.count() == written > 0
    assert not log.spooling
