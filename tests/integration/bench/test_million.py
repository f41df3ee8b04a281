"""No question to the log makes PostgreSQL read a whole month of it; the bench that says so can tell."""

import argparse
import secrets
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import text

from bench.million.__main__ import run
from bench.million.fill import TASKS, fill
from bench.million.questions import compare, find_scans, list_questions
from server.store.database import Database
from server.store.episodes import EpisodeStore
from tests.fixtures.databases import execute, name_database

pytestmark = pytest.mark.postgres

EPISODES = 9000


@pytest.fixture(scope="module")
def empty_url(postgres_server: str) -> Iterator[str]:
    name = f"mulligan_test_{secrets.token_hex(6)}"
    execute(postgres_server, f"CREATE DATABASE {name}")
    yield name_database(postgres_server, name)
    execute(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database(empty_url: str) -> AsyncIterator[Database]:
    opened = Database(empty_url)
    yield opened
    await opened.close()


async def read(database: Database, condition: str) -> None:
    async with database.read() as connection:
        await connection.execute(text(f"SELECT task FROM episodes WHERE {condition}"))


@pytest.mark.timeout(300)
async def test_no_question_reads_a_whole_table(empty_url: str, database: Database) -> None:
    told: list[str] = []
    await fill(empty_url, EPISODES, told.append)
    assert told == [f"{EPISODES:,} of {EPISODES:,} episodes"]
    store = EpisodeStore(database)
    assert await store.count() == EPISODES
    assert {one.task for one in await store.list(limit=400)} == set(TASKS)
    assert len(await store.held_out("sql", limit=50)) == 50
    assert sum((await store.count_outcomes("sql@11", most=100)).values()) == 100
    questions = list_questions(database, time.time())
    assert await find_scans(database, questions, small=True) == {}
    # What no index serves is found out.
    scans = await find_scans(
        database, {"table": lambda: read(database, "error <> 'x'"), "index": store.count}, small=True
    )
    assert all(any(name.startswith("episodes_") for name in scans[kind]) for kind in ("table", "index"))
    (cost,) = await compare({"page": questions["page: newest"]}, {"page": questions["page: newest"]}, 3)
    assert cost.small_ms > 0 < cost.growth


@pytest.mark.nightly
@pytest.mark.timeout(1800)
async def test_a_log_of_a_hundred_thousand_is_not_slower(postgres_server: str) -> None:
    """Up to twice: this machine may be busy. The bench itself asks for 1.5 from ten thousand to a million."""
    options = {"small": 10_000, "large": 100_000, "repeats": 15, "write_s": 3.0, "only": "", "prune": True}
    given = argparse.Namespace(server=postgres_server, most_growth=2.0, keep=False, **options)
    assert await run(given) == 0
