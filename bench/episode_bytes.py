"""Measures what an episode takes on disk, in SQLite and PostgreSQL, indexes and partitions included.

    python -m bench.episode_bytes [--episodes 5000] [--database-url URL ...]

Each database is migrated and written to: give throw-away ones. Texts are random letters, which hardly compress: words
take less. A passed episode here has a prompt of 600 and an answer of 200 characters; a recovered one also has a
reflection (200 characters, 150 prompt tokens, 60 sampled with their logprobs) and a second answer. A million of the mix
are three passed ones for each recovered one.
"""

import argparse
import asyncio
import dataclasses
import random
import string
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from bench.episode_log import make_episode
from server.domain import Episode, Outcome, Usage
from server.settings import LogSettings
from server.store import migrations
from server.store.database import Database
from server.store.episode_log import EpisodeLog

CONCURRENCY = 64
PASSED_SHARE = 0.75
POSTGRES_BYTES = """
SELECT coalesce(sum(pg_total_relation_size(oid)), 0) FROM pg_class
WHERE relkind IN ('r', 'm') AND relnamespace = 'public'::regnamespace
"""


def letters(count: int) -> str:
    """Make random letters."""
    return "".join(random.choices(string.ascii_letters + " ", k=count))


def make_recovered() -> Episode:
    """Make an episode that a reflection rescued, of texts that hardly compress."""
    made = make_episode()
    attempts = [
        dataclasses.replace(attempt, answer={"role": "assistant", "content": letters(200)}) for attempt in made.attempts
    ]
    (reflection,) = made.reflections
    sampled = dataclasses.replace(
        reflection,
        text=letters(200),
        usage=Usage(150, 60),
        prompt_ids=tuple(random.randrange(150_000) for _ in range(150)),
        token_ids=tuple(random.randrange(150_000) for _ in range(60)),
        logprobs=tuple(-random.random() for _ in range(60)),
    )
    request = {"messages": [{"role": "user", "content": letters(600)}], "temperature": 1}
    return dataclasses.replace(made, request=request, attempts=attempts, reflections=[sampled])


def make_passed() -> Episode:
    """Make an episode that passed at first."""
    made = make_recovered()
    return dataclasses.replace(made, outcome=Outcome.PASSED, attempts=made.attempts[:1], reflections=[])


async def occupied(database: Database) -> int:
    """Return the bytes of all tables and indexes."""
    async with database.read() as connection:
        if database.dialect == "postgresql":
            return int((await connection.execute(text(POSTGRES_BYTES))).scalar_one())
        pages = int((await connection.execute(text("PRAGMA page_count"))).scalar_one())
        return pages * int((await connection.execute(text("PRAGMA page_size"))).scalar_one())


async def measure(url: str, make: Callable[[], Episode], count: int) -> float:
    """Log `count` episodes; return the bytes that each took."""
    await asyncio.to_thread(migrations.upgrade, url)
    database = Database(url)
    with tempfile.TemporaryDirectory() as spool:
        log = EpisodeLog(database, LogSettings(), Path(spool))
        await log.start()
        try:
            before = await occupied(database)
            for begin in range(0, count, CONCURRENCY):
                some = min(CONCURRENCY, count - begin)
                await asyncio.gather(*(log.record(make()) for _ in range(some)))
            return (await occupied(database) - before) / count
        finally:
            await log.stop()
            await database.close()


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=5000)
    parser.add_argument("--database-url", action="append", help="throw-away databases; default: an SQLite file")
    given = parser.parse_args()
    table = Table("database", "episode", "bytes each", "GB a million")
    with tempfile.TemporaryDirectory() as folder:
        for url in given.database_url or [f"sqlite:///{folder}/bench.db"]:
            took = [await measure(url, make, given.episodes) for make in (make_passed, make_recovered)]
            mixed = PASSED_SHARE * took[0] + (1 - PASSED_SHARE) * took[1]
            for name, each in zip(("passed at first", "recovered", "the mix"), (*took, mixed), strict=True):
                table.add_row(url.split(":")[0], name, f"{each:,.0f}", f"{each / 1000:.2f}")
    Console().print(table)


if __name__ == "__main__":
    asyncio.run(main())
