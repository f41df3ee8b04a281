"""The episode log: how it groups commits, what it refuses, and what it never loses; on both dialects."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from server.domain import Usage
from server.errors import StoreUnavailable
from server.settings import LogSettings
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.episodes import EpisodeStore
from server.store.writers import Writer
from tests.fixtures.episodes import make_attempt, make_episode


class CountingWriter:
    def __init__(self, owner: "CountingDatabase", writer: Writer) -> None:
        self.owner, self.writer = owner, writer
        self.close, self.abandon = writer.close, writer.abandon

    async def write(self, batch, guard=None) -> None:
        if self.owner.away:
            raise OSError("away")
        await asyncio.sleep(self.owner.pause_s)
        await self.writer.write(batch, guard)
        self.owner.commits += 1


class CountingDatabase(Database):
    """Counts the transactions of its writers, and can be slow about them or away."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.commits = 0
        self.pause_s = 0.0
        self.away = False

    async def open_writer(self):
        if self.away:
            raise OSError("away")
        return CountingWriter(self, await super().open_writer())

    async def ping(self) -> None:
        if self.away:
            raise StoreUnavailable("away")
        await super().ping()


@pytest.fixture
async def counting(database_url: str) -> AsyncIterator[CountingDatabase]:
    opened = CountingDatabase(database_url)
    yield opened
    await opened.close()


@asynccontextmanager
async def open_log(database: Database, spool: Path, **options) -> AsyncIterator[EpisodeLog]:
    settings = LogSettings(**options)
    log = EpisodeLog(database, settings, spool, probe_interval_s=0.02, adopt_interval_s=0.02)
    await log.start()
    try:
        yield log
    finally:
        await log.stop()


async def until(condition, *, within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_an_idle_log_commits_at_once(counting: CountingDatabase, tmp_path: Path) -> None:
    async with open_log(counting, tmp_path, commit_interval_ms=60_000) as log:
        for _ in range(3):
            await asyncio.wait_for(log.record(make_episode()), 20)
    assert counting.commits == 3


async def test_episodes_that_arrive_during_a_commit_share_the_next_one(
    counting: CountingDatabase, tmp_path: Path
) -> None:
    counting.pause_s = 0.05
    async with open_log(counting, tmp_path) as log:
        await asyncio.gather(*(log.record(make_episode()) for _ in range(50)))
    assert counting.commits <= 2
    assert await EpisodeStore(counting).count() == 50


async def test_under_load_a_commit_waits_for_company(counting: CountingDatabase, tmp_path: Path) -> None:
    counting.pause_s = 0.03  # longer than the pauses between arrivals: after each commit somebody is waiting
    async with open_log(counting, tmp_path, commit_interval_ms=400) as log:

        async def trickle() -> None:
            for _ in range(60):
                tasks.append(asyncio.create_task(log.record(make_episode())))
                await asyncio.sleep(0.005)

        tasks: list[asyncio.Task[None]] = []
        began = time.monotonic()
        await trickle()
        await asyncio.gather(*tasks)
        taken_s = time.monotonic() - began
    # Without waiting there would be one every 30 ms: at least ten.
    assert counting.commits <= 3 + taken_s / 0.4
    assert await EpisodeStore(counting).count() == 60


async def test_a_batch_is_no_larger_than_the_limit(counting: CountingDatabase, tmp_path: Path) -> None:
    async with open_log(counting, tmp_path, commit_max_episodes=10, commit_interval_ms=0) as log:
        await asyncio.gather(*(log.record(make_episode()) for _ in range(40)))
    assert counting.commits >= 4


async def test_a_caller_that_goes_away_leaves_its_episode(counting: CountingDatabase, tmp_path: Path) -> None:
    counting.pause_s = 0.05
    async with open_log(counting, tmp_path) as log:
        recording = asyncio.create_task(log.record(make_episode()))
        await asyncio.sleep(0.01)
        recording.cancel()
        await log.record(make_episode())
    assert await EpisodeStore(counting).count() == 2


async def test_stopping_writes_what_is_queued_and_refuses_the_rest(counting: CountingDatabase, tmp_path: Path) -> None:
    log = EpisodeLog(counting, LogSettings(), tmp_path)
    with pytest.raises(StoreUnavailable):
        await log.record(make_episode())
    await log.start()
    recordings = [asyncio.create_task(log.record(make_episode())) for _ in range(20)]
    await asyncio.sleep(0)
    await log.stop()
    await asyncio.gather(*recordings)
    with pytest.raises(StoreUnavailable):
        await log.record(make_episode())
    assert await EpisodeStore(counting).count() == 20


async def test_a_refused_episode_is_set_aside_alone(database: Database, tmp_path: Path) -> None:
    poison = make_episode(attempts=[replace(make_attempt(1, "passed"), usage=Usage(2**70, 0))])
    batch = [*(make_episode() for _ in range(5)), poison, *(make_episode() for _ in range(5))]
    async with open_log(database, tmp_path) as log:
        await asyncio.gather(*(log.record(episode) for episode in batch))
        assert not log.spooling
    store = EpisodeStore(database)
    assert await store.count() == 10
    assert await store.get(poison.id) is None
    (line,) = (tmp_path / "rejected.jsonl").read_text().splitlines()
    rejected = json.loads(line)
    assert rejected["episode"]["id"] == poison.id
    assert rejected["attempts"][0]["prompt_tokens"] == 2**70
    assert rejected["error"]


async def test_what_cannot_be_written_down_is_the_callers_error(database: Database, tmp_path: Path) -> None:
    async with open_log(database, tmp_path) as log:
        with pytest.raises(TypeError, match="object"):
            await log.record(make_episode(request={"messages": object()}))
        await log.record(make_episode())
    assert await EpisodeStore(database).count() == 1


async def test_while_the_database_is_away_the_spool_takes_episodes_and_gives_them_back(
    counting: CountingDatabase, tmp_path: Path
) -> None:
    store = EpisodeStore(counting)
    async with open_log(counting, tmp_path) as log:
        first = make_episode()
        await log.record(first)
        counting.away = True
        spooled = [make_episode() for _ in range(30)]
        await asyncio.gather(*(log.record(episode) for episode in (*spooled, first)))
        assert log.spooling
        assert log.spool_bytes > 1000
        assert await store.count() == 1
        counting.away = False

        async def home() -> bool:
            return not log.spooling and await store.count() == 31

        await until(home)
        assert [await store.get(episode.id) for episode in spooled] == spooled
        await log.record(make_episode())
        assert await store.count() == 32
    assert list(tmp_path.glob("*.spool")) == []


async def test_a_refused_episode_in_the_spool_does_not_hold_up_the_others(
    counting: CountingDatabase, tmp_path: Path
) -> None:
    poison = make_episode(attempts=[replace(make_attempt(1, "passed"), usage=Usage(2**62, 0))])
    counting.away = True
    async with open_log(counting, tmp_path) as log:
        for episode in (make_episode(), poison, make_episode()):
            await log.record(episode)
        huge = make_episode(attempts=[replace(make_attempt(1, "passed"), usage=Usage(2**70, 0))])
        await log.record(huge)  # even the spool cannot hold this number
        counting.away = False

        async def home() -> bool:
            return log.spool_bytes > 0 and not log.spooling

        await until(home)
    store = EpisodeStore(counting)
    taken = 3 if counting.dialect == "sqlite" else 2  # SQLite's integers have 64 bits, PostgreSQL's here 32
    assert await store.count() == taken
    rejected = [json.loads(line)["episode"]["id"] for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert rejected == ([huge.id] if counting.dialect == "sqlite" else [huge.id, poison.id])


async def test_a_full_spool_says_503(counting: CountingDatabase, tmp_path: Path) -> None:
    counting.away = True
    async with open_log(counting, tmp_path, spool_max_bytes=8000) as log:
        await log.record(make_episode())
        with pytest.raises(StoreUnavailable):
            await log.record(make_episode(question="x" * 8000))
        await log.record(make_episode())  # a small one still fits
        results = await asyncio.gather(*(log.record(make_episode()) for _ in range(8)), return_exceptions=True)
        assert {type(result) for result in results} == {type(None), StoreUnavailable}
        counting.away = False

        async def open_again() -> bool:
            return not log.spooling

        await until(open_again)
        await log.record(make_episode(question="x" * 8000))
    assert await EpisodeStore(counting).count() >= 3


async def test_a_spool_that_cannot_be_written_says_503(counting: CountingDatabase, tmp_path: Path) -> None:
    counting.away = True
    (tmp_path / "file").write_text("in the way")
    async with open_log(counting, tmp_path / "file") as log:
        with pytest.raises(StoreUnavailable):
            await log.record(make_episode())


async def test_a_log_that_starts_adopts_what_a_dead_process_left(counting: CountingDatabase, tmp_path: Path) -> None:
    counting.away = True
    left = [make_episode() for _ in range(3)]
    async with open_log(counting, tmp_path) as dead:
        for episode in left:
            await dead.record(episode)
    assert len(list(tmp_path.glob("*.spool"))) == 1
    counting.away = False
    store = EpisodeStore(counting)
    async with open_log(counting, tmp_path):

        async def home() -> bool:
            return await store.count() == 3 and not list(tmp_path.glob("*.spool"))

        await until(home)
    assert [await store.get(episode.id) for episode in left] == left
