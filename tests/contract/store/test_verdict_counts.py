"""The counts of verdicts, on both dialects."""

import asyncio
from dataclasses import replace

from server.domain import VerdictCount
from server.store.database import Database
from server.store.verdict_counts import AT_ONCE, VerdictCountStore

ONE = VerdictCount("sql@1", 100, "passed", "", 3, 1.5, 1.0)


async def test_counts_add_up_and_the_slowest_stays(database: Database) -> None:
    counts = VerdictCountStore(database)
    await counts.add([ONE])
    await counts.add([replace(ONE, count=2, total_ms=0.25, slowest_ms=0.2)])
    assert await counts.list("sql") == [replace(ONE, count=5, total_ms=1.75)]
    await counts.add([replace(ONE, count=1, total_ms=9.0, slowest_ms=9.0)])
    assert await counts.list("sql") == [replace(ONE, count=6, total_ms=10.75, slowest_ms=9.0)]


async def test_hours_statuses_and_causes_are_counted_apart(database: Database) -> None:
    counts = VerdictCountStore(database)
    others = [
        replace(ONE, hour=99),
        replace(ONE, status="abstained", cause="timeout"),
        replace(ONE, status="abstained", cause="crashed"),
    ]
    await counts.add([ONE, *others])
    found = await counts.list("sql")
    assert found[0].hour == 99
    assert sorted((one.hour, one.status, one.cause) for one in found) == sorted(
        (one.hour, one.status, one.cause) for one in [ONE, *others]
    )
    assert [one.hour for one in await counts.list("sql", since_hour=100)] == [100] * 3


async def test_a_name_finds_its_versions_and_no_name_that_begins_likewise(database: Database) -> None:
    counts = VerdictCountStore(database)
    pins = ["sql@1", "sql@2", "sql@10", "sq@1", "sqlA@1", "sql-x@1", "sql.x@1", "sqlx@1"]
    await counts.add([replace(ONE, verifier=pin) for pin in pins])
    assert {one.verifier for one in await counts.list("sql")} == {"sql@1", "sql@2", "sql@10"}
    assert {one.verifier for one in await counts.list("sql", version=1)} == {"sql@1"}


async def test_many_are_added_at_once(database: Database) -> None:
    counts = VerdictCountStore(database)
    many = [replace(ONE, hour=hour) for hour in range(AT_ONCE + 7)]
    await counts.add(many)
    await counts.add(many)
    assert {one.count for one in await counts.list("sql")} == {6}
    assert len(await counts.list("sql")) == AT_ONCE + 7
    await counts.add([])


async def test_processes_that_add_at_the_same_time_lose_nothing(database: Database) -> None:
    counts = VerdictCountStore(database)
    mixed = [replace(ONE, verifier=f"sql@{version}", count=1) for version in range(1, 30)]
    await asyncio.gather(*(counts.add(mixed if turn % 2 else mixed[::-1]) for turn in range(8)))
    assert {one.count for one in await counts.list("sql")} == {8}
