"""Measures the episode log beside a plain INSERT for each request, in one run, on SQLite and PostgreSQL.

    python -m bench.episode_log [--seconds 3] [--rounds 1] [--database-url URL ...]

Each database is migrated and written to: give throw-away ones. Wall times on a shared machine swing, so read the
ratios, of medians over rounds in which all take turns. An episode here has two attempts and a reflection of 60 tokens.
`unguarded` is the log without what each of its commits asks about deletions.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields
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
from server.store.writers import Guard, Rows, Writer

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


class Unguarded:
    """A writer that commits without asking whether anything was deleted meanwhile."""

    def __init__(self, writer: Writer) -> None:
        self.close, self.abandon, self._writer = writer.close, writer.abandon, writer

    async def write(self, batch: Sequence[tuple[str, Rows]], guard: Guard | None = None) -> None:
        """Commit rows."""
        del guard
        await self._writer.write(batch)


class UnguardedDatabase(Database):
    """A database whose log heeds no deletions."""

    async def open_writer(self) -> Writer:
        """Open a writer for the log."""
        return Unguarded(await super().open_writer())


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


def take_medians(measured: Sequence[Measurement]) -> Measurement:
    """Take the median of each figure."""
    return Measurement(
        *(statistics.median(getattr(one, field.name) for one in measured) for field in fields(Measurement))
    )


async def measure_database(url: str, seconds: float, rounds: int, table: Table) -> None:
    """Measure all ways on one database and add the rows."""
    await asyncio.to_thread(migrations.upgrade, url)
    database, unguarded = Database(url), UnguardedDatabase(url)
    with tempfile.TemporaryDirectory() as spool, tempfile.TemporaryDirectory() as other:
        logs = EpisodeLog(database, LogSettings(), Path(spool)), EpisodeLog(unguarded, LogSettings(), Path(other))
        for log in logs:
            await log.start()
        ways = {"INSERT a request": plain_insert(database), "episode log": logs[0].record, "unguarded": logs[1].record}
        for concurrency in (1, 32):
            measured: dict[str, list[Measurement]] = {name: [] for name in ways}
            for _ in range(rounds):
                for name, record in ways.items():
                    measured[name].append(await measure(record, concurrency, seconds))
            add_rows(
                table, database.dialect, concurrency, {name: take_medians(some) for name, some in measured.items()}
            )
        for log in logs:
            await log.stop()
    await unguarded.close()
    await database.close()


def add_rows(table: Table, dialect: str, concurrency: int, measured: dict[str, Measurement]) -> None:
    """Add a row for each way; the ratios are to the first."""
    plain = next(iter(measured.values()))
    for name, shown in measured.items():
        table.add_row(
            dialect,
            name,
            str(concurrency),
            f"{shown.per_s:,.0f}",
            f"{shown.p50_ms:.2f}",
            f"{shown.p99_ms:.2f}",
            f"{shown.cpu_us:,.0f}",
            f"{shown.per_s / plain.per_s:.2f}x",
            f"{shown.cpu_us / plain.cpu_us:.2f}x",
        )


async def run(urls: list[str], seconds: float, rounds: int) -> Table:
    """Measure on every database."""
    table = Table(title="Recording an episode (two attempts, one reflection)")
    for title in ("database", "how", "at once", "episodes/s", "p50 ms", "p99 ms", "CPU us", "rate", "CPU"):
        table.add_column(title, justify="left" if title in ("database", "how") else "right", no_wrap=True)
    for url in urls:
        await measure_database(url, seconds, rounds, table)
    return table


def main() -> None:
    """Read the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each of the measurements takes")
    parser.add_argument("--rounds", type=int, default=1, help="how often each is measured; medians are shown")
    parser.add_argument("--database-url", action="append", help="throw-away databases; default: a new SQLite file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        urls = arguments.database_url or [f"sqlite:///{folder}/bench.db"]
        Console(width=120).print(asyncio.run(run(urls, arguments.seconds, arguments.rounds)))


if __name__ == "__main__":
    main()
