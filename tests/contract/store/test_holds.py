"""Who needs an adapter and who takes it away, on both dialects; and what processes say of the engines they ask."""

import asyncio

import pytest

from server.domain import Adapter, RoundState, Task
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.holds import HoldStore
from server.store.presence import PresenceStore
from server.store.rounds import RoundStore
from server.store.tasks import TaskStore


@pytest.fixture
def holds(database: Database) -> HoldStore:
    return HoldStore(database)


async def test_what_is_held_is_not_unloaded_and_what_is_being_unloaded_is_not_held(holds: HoldStore):
    assert await holds.hold("a@1")
    assert await holds.hold("a@1")  # two may need it
    assert not await holds.begin_unload("a@1")
    assert await holds.begin_unload("a@2")
    await holds.release("a@1")
    assert await holds.begin_unload("a@1")
    assert not await holds.begin_unload("a@1")
    assert not await holds.hold("a@1")
    await holds.end_unload("a@1")
    assert await holds.hold("a@1")


async def test_what_a_process_left_behind_ends_by_itself(holds: HoldStore):
    assert await holds.hold("a@1", seconds=0.05)
    assert not await holds.begin_unload("a@1", seconds=0.05)
    await asyncio.sleep(0.1)
    assert await holds.begin_unload("a@1", seconds=0.05)
    assert not await holds.hold("a@1")
    await asyncio.sleep(0.1)
    assert await holds.hold("a@1")


async def test_of_many_at_once_one_gets_it(holds: HoldStore):
    assert sum(await asyncio.gather(*(holds.begin_unload("a@1") for _ in range(8)))) == 1


async def test_champions_are_in_use(holds: HoldStore, database: Database):
    tasks, adapters = TaskStore(database), AdapterStore(database)
    await tasks.create(Task("sql"))
    await adapters.add(Adapter("sql@1", "sql", "/", {}))
    assert await holds.find_use("sql@1") == ""
    await tasks.flip_champion("sql", "sql@1", expected_generation=0)
    assert await holds.find_use("sql@1") == "it is the champion of task sql"
    await tasks.flip_champion("sql", "", expected_generation=1)
    assert await holds.find_use("sql@1") == ""


async def test_a_running_round_keeps_its_pushes_and_what_its_task_saved(holds: HoldStore, database: Database):
    rounds = RoundStore(database)
    round_ = await rounds.create("sql", {})
    names = ("sql@1", f"sql@{round_.number}.4-abc123")
    assert [await holds.find_use(name) for name in names] == ["", ""]
    leased = await rounds.lease(round_.id, "w")
    assert leased is not None
    assert [await holds.find_use(name) for name in names] == [f"round {round_.id} uses it"] * 2
    for other in (f"sql@{round_.number + 1}.4-abc123", f"other@{round_.number}.4-abc123", "other@1"):
        assert await holds.find_use(other) == ""
    assert await holds.find_use("sql@1", except_round=round_.id) == ""
    await rounds.finish(round_.id, leased.epoch, RoundState.FAILED, "done")
    assert [await holds.find_use(name) for name in names] == ["", ""]


async def test_a_process_says_what_it_sees_of_the_engines(database: Database):
    presence = PresenceStore(database)
    await presence.report("old", {}, {})
    await presence.report("new", {"sql": 1}, {}, {"http://e1": ["b@1", "a@1"], "http://e2": []})
    seen = {process.id: process.replicas for process in await presence.live(60)}
    assert seen == {"old": {}, "new": {"http://e1": ["a@1", "b@1"], "http://e2": []}}
