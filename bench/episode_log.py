"""Measures the episode log beside a plain INSERT for each request, in one run, on SQLite and PostgreSQL.

    python -m bench.episode_log [--seconds 3] [--database-url URL ...]

Each database is migrated and written to: give throw-away ones. Wall times on a shared machine swing, so read the
ratios. An episode here has two attempts and a reflection of 60 tokens.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sqlalchemy.dialects import postgresql, sqlite

from server.domain import (
    Attempt,
    Binding,
    Episode,
    LoggedVerdict,
    Outcome,
    Reflection,
    RetryPolicy,
    Usage,
    VerifyMode,
    new_id,
)
from server.settings import LogSettings
from server.store import migrations
from server.store.cleaning import decode_json
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.episode_rows import COLUMNS, TABLES, encode_episode

Record = Callable[[Episode], Awaitable[None]]
WARM_UP_S = 0.5


@dataclass(frozen=True)
class Measurement:
    """What one way of recording did."""

    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


def make_episode() -> Episode:
    """Make an episode that a reflection rescued."""
    verdict = LoggedVerdict("countdown@1", "failed", 0.0, "not 9")
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 512}
    answer = {"role": "assistant", "content": "a" * 200}
    return Episode(
        id=new_id("ep"),
        task="countdown",
        model="countdown",
        base_model="demo",
        adapter="",
        key="key",
        request={"messages": [{"role": "user", "content": "x" * 600}], "temperature": 1},
        bindings=(Binding("countdown", {}, "countdown", 1, {"numbers": [1, 2, 3], "target": 9}),),
        verify=VerifyMode.ENFORCE,
        retry=RetryPolicy(),
        outcome=Outcome.RECOVERED,
        attempts=[
            Attempt(1, answer, "stop", Usage(100, 60), "failed", 0.0, "not 9", (verdict,), sampling),
            Attempt(2, answer, "stop", Usage(200, 60), "passed", 1.0, "", (verdict,), sampling),
        ],
        reflections=[
            Reflection(
                1, "r" * 200, Usage(150, 60), tuple(range(150)), tuple(range(60)), (-0.25,) * 60, sampling=sampling
            )
        ],
        created_at=time.time(),
        split="training",
    )


def plain_insert(database: Database) -> Record:
    """Record as most services do: one transaction a request, through SQLAlchemy and the pool."""
    dialect = postgresql if database.dialect == "postgresql" else sqlite
    json_columns = {"request", "bindings", "retry", "prompts", "answer", "verdicts", "sampling"}

    def name_columns(row: tuple[object, ...], table: int) -> dict[str, object]:
        values = dict(zip(COLUMNS[table], row, strict=True))
        return {
            name: decode_json(value) if name in json_columns and isinstance(value, str) else value
            for name, value in values.items()
        }

    async def record(episode: Episode) -> None:
        rows = encode_episode(episode)
        async with database.write() as connection:
            for table, some in enumerate(((rows.episode,), rows.attempts, rows.reflections)):
                statement = dialect.insert(TABLES[table]).on_conflict_do_nothing()
                await connection.execute(statement, [name_columns(row, table) for row in some])

    return record


async def measure(record: Record, concurrency: int, seconds: float) -> Measurement:
    """Record for some seconds, `concurrency` at a time, each waiting for its own."""
    latencies: list[float] = []

    async def client(until: float) -> None:
        while time.perf_counter() < until:
            episode = make_episode()
            began = time.perf_counter()
            await record(episode)
            latencies.append(time.perf_counter() - began)

    await asyncio.gather(*(client(time.perf_counter() + WARM_UP_S) for _ in range(concurrency)))
    latencies.clear()
    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client(began + seconds) for _ in range(concurrency)))
    taken, cpu = time.perf_counter() - began, time.process_time() - cpu
    latencies.sort()
    count = len(latencies)
    return Measurement(
        per_s=count / taken,
        p50_ms=latencies[count // 2] * 1000,
        p99_ms=latencies[min(count - 1, int(count * 0.99))] * 1000,
        cpu_us=cpu / count * 1e6,
    )


async def measure_database(url: str, seconds: float, table: Table) -> None:
    """Measure both ways on one database and add the rows."""
    await asyncio.to_thread(migrations.upgrade, url)
    database = Database(url)
    with tempfile.TemporaryDirectory() as spool:
        log = EpisodeLog(database, LogSettings(), Path(spool))
        await log.start()
        for concurrency in (1, 32):
            plain = await measure(plain_insert(database), concurrency, seconds)
            grouped = await measure(log.record, concurrency, seconds)
            for name, shown in (("INSERT a request", plain), ("episode log", grouped)):
                table.add_row(
                    database.dialect,
                    name,
                    str(concurrency),
                    f"{shown.per_s:,.0f}",
                    f"{shown.p50_ms:.2f}",
                    f"{shown.p99_ms:.2f}",
                    f"{shown.cpu_us:,.0f}",
                    f"{shown.per_s / plain.per_s:.2f}x",
                    f"{shown.cpu_us / plain.cpu_us:.2f}x",
                )
        await log.stop()
    await database.close()


async def run(urls: list[str], seconds: float) -> Table:
    """Measure on every database."""
    table = Table(title="Recording an episode (two attempts, one reflection)")
    for title in ("database", "how", "at once", "episodes/s", "p50 ms", "p99 ms", "CPU us", "rate", "CPU"):
        table.add_column(title, justify="left" if title in ("database", "how") else "right", no_wrap=True)
    for url in urls:
        await measure_database(url, seconds, table)
    return table


def main() -> None:
    """Read the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each of the measurements takes")
    parser.add_argument("--database-url", action="append", help="throw-away databases; default: a new SQLite file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        urls = arguments.database_url or [f"sqlite:///{folder}/bench.db"]
        Console(width=120).print(asyncio.run(run(urls, arguments.seconds)))


if __name__ == "__main__":
    main()
