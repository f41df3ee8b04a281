"""Asks a log of 10,000 and one of 1,000,000 episodes on PostgreSQL the same, and says what takes longer in the big one.

    python -m bench.million [--server postgresql://postgres@127.0.0.1/postgres] [--small 10000] [--large 1000000]

Two databases are made on that server and dropped at the end (`--keep` keeps them, and the next run uses them again).
Filling a million takes a few minutes and 3 GB. Each question is asked of both logs in turn; read the growth, which
holds on a busy machine, before the milliseconds, which do not. Exit status 1: something grew by more than 1.5 times,
or a whole table was read.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import asyncpg
from rich.console import Console
from rich.table import Table

from bench.episode_bytes import make_recovered, occupied
from bench.million.fill import DAYS, fill
from bench.million.questions import Cost, compare, find_scans, list_questions
from server.settings import LogSettings
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.partitions import Month
from server.store.retention import DAY_S, RetentionStore

WRITERS = 64
WRITE_REPEATS = 9


def tell(said: str) -> None:
    """Say on standard error how far it is."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {said}\n")


async def prepare(server: str, count: int) -> str:
    """Make and fill a database, unless it is there already; return its URL."""
    name = f"mulligan_million_{count}"
    base, _, query = server.partition("?")
    url = base.rsplit("/", 1)[0] + f"/{name}" + (f"?{query}" if query else "")
    connection = await asyncpg.connect(server)
    try:
        there = await connection.fetchval(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1", name
        )
        if there == "filled":
            tell(f"{name} is filled already")
            return url
        await connection.execute(f"DROP DATABASE IF EXISTS {name}")
        await connection.execute(f"CREATE DATABASE {name}")
        began = time.monotonic()
        await fill(url, count, tell)
        tell(f"{name}: filled in {time.monotonic() - began:.0f} s")
        await connection.execute(f"COMMENT ON DATABASE {name} IS 'filled'")
    finally:
        await connection.close()
    return url


async def drop(server: str, url: str) -> None:
    """Drop a database of ours."""
    connection = await asyncpg.connect(server)
    try:
        await connection.execute(f"DROP DATABASE {url.partition('?')[0].rsplit('/', 1)[1]} WITH (FORCE)")
    finally:
        await connection.close()


async def write(database: Database, seconds: float) -> float:
    """Log episodes through the group-committing writer for some seconds; return how many a second."""
    written = 0
    with tempfile.TemporaryDirectory() as spool:
        log = EpisodeLog(database, LogSettings(), Path(spool))
        await log.start()

        async def client(until: float) -> None:
            nonlocal written
            while time.perf_counter() < until:
                await log.record(make_recovered())
                written += 1

        began = time.perf_counter()
        await asyncio.gather(*(client(began + seconds) for _ in range(WRITERS)))
        taken = time.perf_counter() - began
        await log.stop()
    return written / taken


async def compare_writing(small: Database, large: Database, seconds: float, repeats: int) -> Cost:
    """Write to both logs in turn; the cost is what one episode takes at full load."""
    rates: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for place, database in enumerate((small, large)):
            rates[place].append(await write(database, seconds))
    growth = sorted(one / other for one, other in zip(*rates, strict=True))[repeats // 2]
    small_ms, large_ms = (1000 / sorted(some)[repeats // 2] for some in rates)
    return Cost(f"write: an episode, {WRITERS} at once", small_ms, large_ms, growth)


async def prune(database: Database) -> str:
    """Drop the oldest month while episodes are written, and say how long each of both waited."""
    slowest, stop = 0.0, asyncio.Event()
    with tempfile.TemporaryDirectory() as spool:
        log = EpisodeLog(database, LogSettings(), Path(spool))
        await log.start()

        async def client() -> None:
            nonlocal slowest
            while not stop.is_set():
                began = time.perf_counter()
                await log.record(make_recovered())
                slowest = max(slowest, time.perf_counter() - began)

        clients = [asyncio.create_task(client()) for _ in range(8)]
        await asyncio.sleep(1)
        before, slowest = slowest, 0.0
        oldest = next(one for one in await RetentionStore(database, 0, 0).read_partitions() if one.rows)
        past = Month.of(time.time() - DAYS * DAY_S).plus(1).begins_at + DAYS * DAY_S
        began = time.perf_counter()
        done = await RetentionStore(database, DAYS, 200).prune(past + 60)
        taken = time.perf_counter() - began
        stop.set()
        await asyncio.gather(*clients)
        await log.stop()
    return (
        f"months {', '.join(done.months)} with {done.month_episodes:,} episodes and {oldest.bytes / 1e6:,.0f} MB: "
        f"pruned in {taken * 1000:,.0f} ms, {done.kept} held-out problems kept; the slowest of 8 writers waited "
        f"{slowest * 1000:,.0f} ms meanwhile, {before * 1000:,.0f} ms in the second before; spooled: {log.spooling}"
    )


def show(costs: list[Cost], small: int, large: int, most_growth: float) -> None:
    """Print the table."""
    table = Table(title=f"A log of {small:,} episodes and one of {large:,}")
    for title in ("what is asked", f"{small:,}: ms", f"{large:,}: ms", "growth", ""):
        table.add_column(title, justify="left" if title in ("what is asked", "") else "right")
    for cost in costs:
        verdict = "" if cost.growth <= most_growth else "grows"
        table.add_row(cost.name, f"{cost.small_ms:.2f}", f"{cost.large_ms:.2f}", f"{cost.growth:.2f} x", verdict)
    Console(width=100).print(table)


async def run(given: argparse.Namespace) -> int:
    """Fill, ask, write, prune."""
    urls = [await prepare(given.server, count) for count in (given.small, given.large)]
    small, large = (Database(url) for url in urls)
    now = time.time()
    try:
        asked = [list_questions(database, now) for database in (small, large)]
        if given.only:
            asked = [{name: ask for name, ask in some.items() if given.only in name} for some in asked]
        costs = await compare(asked[0], asked[1], given.repeats)
        if given.write_s:
            costs.append(await compare_writing(small, large, given.write_s, WRITE_REPEATS))
        show(costs, given.small, given.large, given.most_growth)
        scans = await find_scans(large, asked[1])
        print(f"read whole: {scans or 'nothing'}")
        print(f"bytes an episode: {await occupied(large) / given.large:,.0f}")
        if given.prune:
            print(await prune(large))
    finally:
        for database in (small, large):
            await database.close()
        if not given.keep:
            for url in urls:
                await drop(given.server, url)
    return int(bool(scans) or any(cost.growth > given.most_growth for cost in costs))


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="postgresql://postgres@127.0.0.1/postgres")
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=1_000_000)
    parser.add_argument("--most-growth", type=float, default=1.5, help="what is more than this fails")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--write-s", type=float, default=3.0, help="how long each of the writing runs takes; 0: none")
    parser.add_argument("--only", default="", help="only questions whose names contain this")
    parser.add_argument("--prune", action="store_true", help="drop a month of the large log at the end, under writers")
    parser.add_argument("--keep", action="store_true", help="keep the databases for another run")
    sys.exit(asyncio.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
