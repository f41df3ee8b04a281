"""The episode log when things die: the process itself, the database, the disk's lock."""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import sqlite3
import time
from collections.abc import AsyncIterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from server.settings import LogSettings
from server.store import migrations
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.episodes import EpisodeStore
from tests.fixtures.episodes import make_episode
from tests.integration.store import children
from tests.integration.store.proxy import Proxy


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.store.children"])
    return context


def run_until_killed(processes: ForkServerContext, url: str, spool: Path) -> list[str]:
    """Run a process that records episodes and kill it right after some `record`; returns what it was told is safe."""
    told, telling = processes.Pipe(duplex=False)
    child = processes.Process(target=children.record_until_killed, args=(url, spool, telling), daemon=True)
    child.start()
    telling.close()
    recorded = [told.recv() for _ in range(20)]
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    with contextlib.suppress(EOFError):
        while True:
            recorded.append(told.recv())
    assert child.exitcode == -signal.SIGKILL
    child.close()
    told.close()
    return recorded


async def find_ids(url: str) -> list[str]:
    database = Database(url)
    try:
        return [episode.id async for episode in EpisodeStore(database).iterate()]
    finally:
        await database.close()


async def until(condition, *, within_s: float = 15.0) -> None:
    async with asyncio.timeout(within_s):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_a_recorded_episode_survives_the_kill_of_its_process(
    processes: ForkServerContext, database_url: str, tmp_path: Path
) -> None:
    recorded = await asyncio.to_thread(run_until_killed, processes, database_url, tmp_path / "spool")
    assert len(recorded) >= 20
    assert set(recorded) <= set(await find_ids(database_url))


async def test_a_spooled_episode_survives_the_kill_and_comes_home_once(
    processes: ForkServerContext, database_url: str, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    nowhere = "postgresql://postgres@127.0.0.1:1/nothing"
    recorded = await asyncio.to_thread(run_until_killed, processes, nowhere, spool)
    assert len(recorded) >= 20
    (left,) = spool.glob("*.spool")
    with left.open("ab") as torn:
        torn.write(b"\x99\0\0\0\0")  # as if the kill had come in the middle of a write

    database = Database(database_url)
    log = EpisodeLog(database, LogSettings(), spool)
    await log.start()

    async def adopted() -> bool:
        return not list(spool.glob("*.spool"))

    await until(adopted)
    await log.stop()
    await database.close()
    ids = await find_ids(database_url)
    assert set(recorded) <= set(ids)
    assert len(ids) == len(set(ids))
    assert len(list(spool.glob("*.torn"))) == 1


@pytest.fixture
async def proxy(postgres_url: str) -> AsyncIterator[Proxy]:
    url = make_url(postgres_url)
    opened = Proxy(str(url.host or url.query.get("host") or "127.0.0.1"), url.port or 5432)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def proxied(postgres_url: str, proxy: Proxy) -> AsyncIterator[Database]:
    url = make_url(postgres_url).set(host="127.0.0.1", port=proxy.port, query={})
    opened = Database(url.render_as_string(hide_password=False))
    yield opened
    await opened.close()


async def record_some(log: EpisodeLog, count: int) -> list[str]:
    episodes = [make_episode() for _ in range(count)]
    await asyncio.gather(*(log.record(episode) for episode in episodes))
    return [episode.id for episode in episodes]


async def come_home(log: EpisodeLog) -> None:
    async def home() -> bool:
        return not log.spooling and log.spool_bytes < 1000

    await until(home)


@pytest.mark.postgres
async def test_postgres_goes_and_comes_back(postgres_url: str, proxy: Proxy, proxied: Database, tmp_path: Path) -> None:
    log = EpisodeLog(proxied, LogSettings(), tmp_path, probe_interval_s=0.05)
    await log.start()
    ids = await record_some(log, 3)
    await proxy.close()
    ids += await record_some(log, 20)
    assert log.spooling
    ids += await record_some(log, 5)
    await proxy.open()
    await come_home(log)
    ids += await record_some(log, 2)
    assert not log.spooling
    await log.stop()
    assert await find_ids(postgres_url) == ids


@pytest.mark.postgres
async def test_postgres_that_stops_answering_holds_nobody_up(
    postgres_url: str, proxy: Proxy, proxied: Database, tmp_path: Path
) -> None:
    log = EpisodeLog(proxied, LogSettings(), tmp_path, probe_interval_s=0.05, commit_timeout_s=0.3)
    await log.start()
    ids = await record_some(log, 2)
    proxy.deaf = True
    began = time.monotonic()
    ids += await record_some(log, 4)
    assert log.spooling
    ids += await record_some(log, 4)
    assert time.monotonic() - began < 10
    proxy.deaf = False
    await proxy.close()  # what was swallowed is lost, so the old connections are of no use
    await proxy.open()
    await come_home(log)
    await log.stop()
    assert sorted(await find_ids(postgres_url)) == ids


@pytest.mark.postgres
async def test_a_commit_whose_answer_is_lost_is_not_written_twice(
    postgres_url: str, proxy: Proxy, proxied: Database, tmp_path: Path
) -> None:
    """The connection dies at some moment of a stream of commits: some were made although nobody heard of it."""
    log = EpisodeLog(proxied, LogSettings(commit_interval_ms=0), tmp_path, probe_interval_s=0.05)
    await log.start()
    ids: list[str] = []

    async def record_until(stop: asyncio.Event) -> None:
        while not stop.is_set():
            ids.extend(await record_some(log, 1))

    stop = asyncio.Event()
    recorders = [asyncio.create_task(record_until(stop)) for _ in range(8)]
    for _ in range(3):
        await asyncio.sleep(0.1)
        await proxy.close()
        await asyncio.sleep(0.1)
        await proxy.open()
    stop.set()
    await asyncio.gather(*recorders)
    await come_home(log)
    await log.stop()
    assert sorted(await find_ids(postgres_url)) == sorted(ids)


async def test_sqlite_that_another_process_locks(sqlite_url: str, tmp_path: Path) -> None:
    database = Database(sqlite_url, busy_timeout_s=0.1)
    log = EpisodeLog(database, LogSettings(), tmp_path / "spool", probe_interval_s=0.05)
    await log.start()
    ids = await record_some(log, 2)
    holder = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    ids += await record_some(log, 5)
    assert log.spooling
    holder.execute("ROLLBACK")
    holder.close()
    await come_home(log)
    ids += await record_some(log, 2)
    await log.stop()
    await database.close()
    assert await find_ids(sqlite_url) == ids


async def test_a_database_that_was_never_migrated_keeps_episodes_waiting(
    empty_database_url: str, tmp_path: Path
) -> None:
    database = Database(empty_database_url)
    log = EpisodeLog(database, LogSettings(), tmp_path / "spool", probe_interval_s=0.05)
    await log.start()
    ids = await record_some(log, 3)
    assert log.spooling
    await asyncio.to_thread(migrations.upgrade, empty_database_url)
    await come_home(log)
    await log.stop()
    await database.close()
    assert await find_ids(empty_database_url) == ids
    assert not (tmp_path / "spool" / "rejected.jsonl").exists()
