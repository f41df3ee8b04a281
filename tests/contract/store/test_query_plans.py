"""Every query that grows with the log finds its rows through an index, as SQLite explains it."""

from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import event

from server.domain import Adapter, Event
from server.store import problems
from server.store.adapters import AdapterStore
from server.store.audit import AuditStore
from server.store.database import Database
from server.store.episodes import EpisodeStore
from server.store.events import EventStore
from server.store.lineage import LineageStore
from server.store.progress import ProgressStore

Query = Callable[[EpisodeStore], Awaitable[object]]


async def drain(store: EpisodeStore, **criteria) -> None:
    async for _ in store.iterate(**criteria):
        pass


async def hop(store: EpisodeStore) -> None:
    async with store._database.read() as connection:
        await problems._hop(connection, "a", 5)


QUERIES: dict[str, Query] = {
    "get": lambda store: store.get("ep_1"),
    "list": lambda store: store.list(before="ep_1"),
    "list by task": lambda store: store.list(task="a", before="ep_1"),
    "list by key": lambda store: store.list(key="k", before="ep_1"),
    "list by outcome": lambda store: store.list(outcome="passed", before="ep_1"),
    "list by passed feedback": lambda store: store.list(said="passed", task="a", before="ep_1"),
    "list by no feedback": lambda store: store.list(said="none", task="a", before="ep_1"),
    "audit's window": lambda store: AuditStore(store._database).read_window("a", 5),
    "audit's promotion": lambda store: AuditStore(store._database).read_promotion("a", "a@1"),
    "audit's feedback": lambda store: AuditStore(store._database).read_feedback("a"),
    "audit's newest": lambda store: AuditStore(store._database).find_newest("a"),
    "lineage of an adapter": lambda store: LineageStore(store._database).trace("a@1"),
    "count_problems": lambda store: ProgressStore(store._database).count_problems("a", (), most=5),
    "count new failures": lambda store: ProgressStore(store._database).count_failures("a", since=1.0, most=5),
    "find_logged": lambda store: ProgressStore(store._database).find_logged("a", ["h1", "h2"]),
    "iterate": drain,
    "iterate a task": lambda store: drain(store, task="a"),
    "failures": lambda store: store.failures("a", since=1.0, limit=5),
    "count_failures": lambda store: store.count_failures("a", since=1.0),
    "held_out": lambda store: store.held_out("a", limit=5),
    "held_out by hopping": hop,
}


@pytest.mark.parametrize("name", QUERIES)
async def test_it_uses_an_index(sqlite_url: str, name: str) -> None:
    database = Database(sqlite_url)
    seen: list[tuple[str, tuple]] = []

    @event.listens_for(database.engine.sync_engine, "before_cursor_execute")
    def remember(_connection, _cursor, statement, parameters, _context, _many) -> None:
        seen.append((statement, parameters))

    await EventStore(database).add(Event("adapter.promoted", "a@1"))
    await AdapterStore(database).add(Adapter("a@1", "a", "/", {}))
    seen.clear()  # what writing asks is not what is looked at
    await QUERIES[name](EpisodeStore(database))
    selects = [(statement, parameters) for statement, parameters in seen if statement.startswith(("SELECT", "WITH"))]
    assert selects
    async with database.read() as connection:
        for statement, parameters in selects:
            plan = (await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)).all()
            grows = ("episodes", "feedback", "events", "attempts")
            steps = [row[-1] for row in plan if row[-1].split()[1:2] and row[-1].split()[1] in grows]
            assert steps or name.startswith(("audit", "lineage")), plan
            assert all("USING" in step and "INDEX" in step for step in steps), plan
    await database.close()
