import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from server.adapters.reconcile import ServingShelf, name_serving
from server.api.roster import Roster
from server.api.traffic import Traffic
from server.api.watch import PresenceReport, Readiness, keep_default_task, repeat, watch_engine
from server.domain import Adapter, Task, TaskVerifier
from server.engine.replicas import Replicas
from server.errors import AdapterRefused, Conflict, EngineUnavailable, StoreUnavailable
from tests.fixtures.engines import ScriptedEngine
from tests.fixtures.stores import MemoryAdapters, MemoryPresence, MemoryTasks, MemoryVerifiers

SHA_OF_HI = "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4"


@pytest.fixture
def tasks():
    tasks = MemoryTasks()
    tasks.put(Task("a", champion="a@1", generation=4))
    tasks.put(Task("b"))
    return tasks


@pytest.fixture
def verifiers():
    verifiers = MemoryVerifiers()
    verifiers.put("v", "regex", {"pattern": "1"})
    verifiers.put("v", "regex", {"pattern": "2"})
    return verifiers


@pytest.fixture
def roster(tasks, verifiers):
    return Roster(tasks, verifiers)


async def test_a_snapshot_has_tasks_their_verifiers_and_the_latest(roster, tasks):
    tasks.put(Task("c", verifiers=(TaskVerifier("v", 1, {"x": 1}, {"answer": "text"}),)))
    snapshot = await roster.refresh()
    assert set(snapshot.tasks) == {"a", "b", "c"}
    (binding,) = snapshot.bindings["c"]
    assert (binding.pin, binding.config, binding.args) == ("v@1", {"pattern": "1"}, {"x": 1})
    assert snapshot.latest["v"].version == 2
    assert snapshot.acknowledged() == {"a": 4, "b": 0, "c": 0}


async def test_what_verifiers_are_made_of_is_read_once(roster, verifiers, monkeypatch):
    await roster.refresh()
    read = []
    get = verifiers.get

    async def note(name, version=None):
        read.append((name, version))
        return await get(name, version)

    async def refuse():
        raise AssertionError("it may be megabytes")

    monkeypatch.setattr(verifiers, "get", note)
    monkeypatch.setattr(verifiers, "list", refuse)
    verifiers.put("v", "regex", {"pattern": "3"})
    for _ in range(3):
        snapshot = await roster.refresh()
    assert read == [("v", 3)]
    assert snapshot.latest["v"].config == {"pattern": "3"}
    verifiers.withdraw("v", 3, revoked_at=1.0, revoked_reason="wrong")
    assert (await roster.refresh()).latest["v"].version == 2
    verifiers.withdraw("v", 1, archived_at=1.0)
    verifiers.withdraw("v", 2, archived_at=1.0)
    assert "v" not in (await roster.refresh()).latest


async def test_one_reading_serves_all_who_wait(roster, tasks):
    await asyncio.gather(*(roster.refresh() for _ in range(10)))
    assert tasks.reads <= 2


async def test_who_asks_while_another_reads_gets_a_later_reading(roster, tasks):
    gate, begun = asyncio.Event(), asyncio.Event()
    read = tasks.list

    async def slow():
        found = await read()
        begun.set()
        await gate.wait()
        return found

    tasks.list = slow
    first = asyncio.create_task(roster.refresh())
    await begun.wait()
    tasks.put(Task("new"))
    second = asyncio.create_task(roster.refresh())
    await asyncio.sleep(0)
    gate.set()
    assert "new" not in (await first).tasks
    assert "new" in (await second).tasks


async def test_a_failed_reading_keeps_the_old_snapshot_and_the_next_one_works(roster, tasks):
    await roster.refresh()
    tasks.away = True
    with pytest.raises(StoreUnavailable):
        await roster.refresh()
    assert (await roster.find_task("a")).generation == 4
    tasks.away = False
    tasks.flip("a", "a@2")
    assert (await roster.refresh()).tasks["a"].generation == 5


async def test_the_report_acknowledges_what_new_episodes_use(roster, tasks):
    presence, traffic = MemoryPresence(), Traffic(10)
    report = PresenceReport("api_1", roster, traffic, presence)
    await report.renew()
    with traffic.counted("a@1", 2), traffic.counted("", 1):
        tasks.flip("a", "a@2")
        await report.renew()
        assert roster.snapshot.tasks["a"].champion == "a@2"
        with traffic.counted("", 1):
            await report.renew()  # nothing that counts has changed
    await report.renew()
    assert presence.reports == [
        ("api_1", {"a": 4, "b": 0}, {}),
        ("api_1", {"a": 5, "b": 0}, {"a@1": 2, "": 1}),
        ("api_1", {"a": 5, "b": 0}, {}),
    ]


async def test_traffic_counts_down_after_errors():
    traffic = Traffic(1)
    with suppress(ZeroDivisionError), traffic.counted("x", 1):
        assert traffic.in_flight() == {"x": 1}
        raise ZeroDivisionError
    assert traffic.in_flight() == {}


async def test_the_default_task_is_made_once(roster, tasks):
    made = []

    async def create(task):
        made.append(task.name)
        if len(made) == 2:
            raise Conflict("another process was quicker")
        return tasks.put(task)

    tasks.create = create
    await roster.refresh()
    await keep_default_task(roster, tasks)
    await keep_default_task(roster, tasks)
    assert made == ["default"]
    del tasks.tasks["default"]
    await roster.refresh()
    await keep_default_task(roster, tasks)
    assert made == ["default", "default"]


class TestReconcile:
    @pytest.fixture
    def adapters(self, tmp_path):
        (tmp_path / "weights").write_text("hi")
        adapters = MemoryAdapters()
        adapters.put(Adapter("a@1", "a", str(tmp_path), {"weights": SHA_OF_HI}))
        return adapters

    async def test_what_serves_is_missing_until_it_is_loaded(self, tasks, adapters, tmp_path):
        engine, shelf = ScriptedEngine(), ServingShelf(tasks, adapters)
        assert await shelf.find_missing(engine.adapters) == {"a@1"}
        await shelf.load(engine, {"a@1"})
        assert engine.adapters == {"a@1": str(tmp_path)}
        assert await shelf.find_missing(engine.adapters) == set()

    async def test_a_canary_serves_too(self, tasks, adapters):
        tasks.put(replace(tasks.tasks["a"], canary="a@2", canary_share=0.1))
        assert await ServingShelf(tasks, adapters).find_missing({"a@1"}) == {"a@2"}

    async def test_the_database_is_asked_only_where_something_is_missing_at_a_glance(self, tasks, adapters):
        shelf = ServingShelf(tasks, adapters, glance=lambda: {"a@1"})
        reads = tasks.reads
        assert await shelf.find_missing({"a@1", "other"}) == set()
        assert tasks.reads == reads
        tasks.put(Task("a", champion="a@2"))  # it moved since the glance: the old one is not brought back
        assert await shelf.find_missing({"a@2"}) == set()
        assert tasks.reads == reads + 1

    async def test_a_trainers_pushes_are_kept_too(self, tasks, adapters):
        pushes = {"a@2.1-abc": "/pushed"}
        engine, shelf = ScriptedEngine(), ServingShelf(tasks, adapters, also=pushes)
        assert await shelf.find_missing({"a@1"}) == {"a@2.1-abc"}
        await shelf.load(engine, {"a@2.1-abc"})
        assert engine.adapters == pushes
        pushes.clear()
        assert await shelf.find_missing({"a@1"}) == set()

    async def test_files_that_were_changed_are_not_loaded(self, tasks, adapters, tmp_path):
        (tmp_path / "weights").write_text("ho")
        engine, shelf = ScriptedEngine(), ServingShelf(tasks, adapters)
        await shelf.load(engine, {"a@1"})
        assert engine.adapters == {}
        assert "is not the one that was registered" in shelf.refused["a@1"]
        assert await shelf.find_missing({}) == set()  # for a while

    async def test_one_broken_champion_does_not_keep_the_others_out(self, tasks, adapters, tmp_path):
        engine, shelf = ScriptedEngine(), ServingShelf(tasks, adapters)
        await shelf.load(engine, {"0@1", "a@1"})
        assert list(engine.adapters) == ["a@1"]
        assert [*shelf.refused] == ["0@1"]

    async def test_another_process_may_be_quicker(self, tasks, adapters, tmp_path):
        engine, shelf = ScriptedEngine(), ServingShelf(tasks, adapters)

        async def load(name, path):
            engine.adapters[name] = path
            raise AdapterRefused("it is loaded already")

        engine.load_adapter = load
        await shelf.load(engine, {"a@1"})
        assert shelf.refused == {}

    async def test_an_engine_that_is_away_is_said(self, tasks, adapters):
        with pytest.raises(EngineUnavailable):
            await ServingShelf(tasks, adapters).load(ScriptedEngine(up=False), {"a@1"})


class TestWatchEngine:
    @pytest.fixture
    async def watch(self, roster, tasks, tmp_path):
        await roster.refresh()
        adapters = MemoryAdapters()
        adapters.put(Adapter("a@1", "a", str(tmp_path), {}))
        engine, readiness = ScriptedEngine(), Readiness()
        shelf = ServingShelf(tasks, adapters, glance=lambda: name_serving(roster.snapshot.tasks.values()))
        replicas = Replicas({"scripted": engine})

        async def look():
            await watch_engine(replicas, shelf, readiness)
            return readiness.adapters

        return engine, readiness, look

    async def test_ready_means_that_the_champions_are_there(self, watch):
        engine, readiness, look = watch
        assert readiness.adapters is False
        assert await look() is True
        assert engine.loaded == ["a@1"]
        assert await look() is True
        assert engine.loaded == ["a@1"]

    async def test_after_a_restart_they_are_loaded_again(self, watch):
        engine, readiness, look = watch
        await look()
        engine.up = False
        assert await look() is False
        assert readiness.reason
        engine.up = True
        engine.adapters.clear()
        assert await look() is True
        assert engine.loaded == ["a@1", "a@1"]

    async def test_a_quick_restart_is_noticed_too(self, watch):
        engine, _, look = watch
        await look()
        engine.adapters.clear()
        assert await look() is True
        assert list(engine.adapters) == ["a@1"]

    async def test_while_they_are_loaded_it_is_not_ready(self, watch):
        engine, readiness, look = watch
        seen = []
        load = engine.load_adapter

        async def note(name, path):
            seen.append(readiness.adapters)
            await load(name, path)

        engine.load_adapter = note
        assert await look() is True
        assert seen == [False]

    async def test_a_broken_champion_says_why_and_leaves_the_others_served(self, watch, roster, tasks):
        engine, readiness, look = watch
        tasks.put(Task("b", champion="b@1"))
        await roster.refresh()
        assert await look() is True
        assert list(engine.adapters) == ["a@1"]
        assert "b@1" in readiness.reason
        assert readiness.refused == {"b@1"}
        with capture_logs() as lines:
            assert await look() is True  # and it is not tried again and again
        assert not [line for line in lines if line["event"] == "adapter_refused"]
        engine.adapters.clear()
        assert await look() is True
        assert list(engine.adapters) == ["a@1"]


async def test_a_loop_outlives_what_fails(monkeypatch):
    monkeypatch.setattr("server.api.watch._LONGEST_PAUSE_S", 0.001)
    runs = []

    async def work():
        runs.append(1)
        if len(runs) < 4:
            raise StoreUnavailable("away")

    loop = asyncio.create_task(repeat("test", work, 0.001))
    while len(runs) < 6:
        await asyncio.sleep(0.001)
    loop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loop
