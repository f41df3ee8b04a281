"""Every query that grows with the log finds its rows through an index, as SQLite explains it."""

from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import event

from server.store.database import Database
from server.store.episodes import EpisodeStore

Query = Callable[[EpisodeStore], Awaitable[object]]


async def drain(store: EpisodeStore, **criteria) -> None:
    async for _ in store.iterate(**criteria):
        pass


QUERIES: dict[str, Query] = {
    "get": lambda store: store.get("ep_1"),
    "list": lambda store: store.list(before="ep_1"),
    "list by task": lambda store: store.list(task="a", before="ep_1"),
    "list by key": lambda store: store.list(key="k", before="ep_1"),
    "list by outcome": lambda store: store.list(outcome="passed", before="ep_1"),
    "iterate": drain,
    "iterate a task": lambda store: drain(store, task="a"),
    "failures": lambda store: store.failures("a", since=1.0, limit=5),
    "count_failures": lambda store: store.count_failures("a", since=1.0),
    "held_out": lambda store: store.held_out("a", limit=5),
}


@pytest.mark.parametrize("name", QUERIES)
async def test_it_uses_an_index(sqlite_url: str, name: str) -> None:
    database = Database(sqlite_url)
    seen: list[tuple[str, tuple]] = []

    @event.listens_for(database.engine.sync_engine, "before_cursor_execute")
    def remember(_connection, _cursor, statement, parameters, _context, _many) -> None:
        seen.append((statement, parameters))

    await QUERIES[name](EpisodeStore(database))
    selects = [(statement, parameters) for statement, parameters in seen if statement.startswith("SELECT")]
    assert selects
    async with database.read() as connection:
        for statement, parameters in selects:
            plan = (await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)).all()
            steps = [row[-1] for row in plan if "episodes" in row[-1]]
            assert steps
            assert all("USING" in step and "INDEX" in step for step in steps), plan
    await database.close()
