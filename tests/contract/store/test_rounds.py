"""The round store, on both dialects: leases, heartbeats and fencing."""

import asyncio
import math

import pytest

from server.domain import Adapter, Round, RoundState, Step, Task
from server.errors import Conflict, Fenced, NotFound
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.rounds import RoundStore
from server.store.tasks import TaskStore


@pytest.fixture
def rounds(database: Database) -> RoundStore:
    return RoundStore(database)


async def start(rounds: RoundStore, task: str = "sql", owner: str = "w1") -> Round:
    leased = await rounds.lease((await rounds.create(task, {"steps": 3})).id, owner)
    assert leased is not None
    return leased


async def fall_silent(rounds: RoundStore) -> list[Round]:
    await asyncio.sleep(0.03)
    return await rounds.reap(lost_after_s=0.02)


async def test_a_new_round_is_queued_and_numbered_within_its_task(rounds: RoundStore) -> None:
    first = await rounds.create("sql", {"steps": 3, "learning_rate": 1e-4})
    assert (first.state, first.number, first.epoch, first.task) == (RoundState.QUEUED, 1, 0, "sql")
    assert first.options == {"steps": 3, "learning_rate": 1e-4}
    assert first.created_at > 1.7e9
    assert await rounds.get(first.id) == first
    assert (await rounds.create("chat", {})).number == 1
    await rounds.request_cancel(first.id)
    assert (await rounds.create("sql", {})).number == 2
    assert await rounds.get("rd_none") is None


async def test_a_task_has_one_open_round(rounds: RoundStore) -> None:
    running = await start(rounds)
    with pytest.raises(Conflict):
        await rounds.create("sql", {})
    await rounds.finish(running.id, running.epoch, RoundState.INCONCLUSIVE, "too close")
    with pytest.raises(Conflict):
        await asyncio.gather(rounds.create("sql", {}), rounds.create("sql", {}))
    assert len([row for row in await rounds.list("sql") if not row.state.ended]) == 1


async def test_of_leases_at_once_exactly_one_wins(rounds: RoundStore, database_url: str) -> None:
    queued = await rounds.create("sql", {})
    others = [Database(database_url) for _ in range(6)]
    try:
        for other in others:
            await other.ping()
        results = await asyncio.gather(*(RoundStore(db).lease(queued.id, f"w{n}") for n, db in enumerate(others)))
    finally:
        for other in others:
            await other.close()
    won = [result for result in results if result is not None]
    assert len(won) == 1
    assert (won[0].state, won[0].epoch) == (RoundState.RUNNING, 1)
    assert await rounds.get(queued.id) == won[0]


async def test_a_lease_says_who_and_since_when(rounds: RoundStore) -> None:
    leased = await start(rounds, owner="worker-7")
    assert (leased.owner, leased.epoch) == ("worker-7", 1)
    assert leased.created_at <= leased.started_at == pytest.approx(leased.heartbeat_at, abs=0.01)
    assert await rounds.lease("rd_none", "w") is None


async def test_a_heartbeat_moves_the_clock_and_tells_of_a_cancellation(rounds: RoundStore) -> None:
    leased = await start(rounds)
    await asyncio.sleep(0.02)
    beaten = await rounds.heartbeat(leased.id, leased.epoch)
    assert beaten.heartbeat_at > leased.heartbeat_at
    assert not beaten.cancel_requested
    await rounds.request_cancel(leased.id)
    assert (await rounds.heartbeat(leased.id, leased.epoch)).cancel_requested


async def test_what_a_trainer_writes_down(rounds: RoundStore) -> None:
    leased = await start(rounds)
    written = await rounds.update(
        leased.id, 1, phase="gate", adapter="sql@1", parent="sql@0", report={"gain": 0.5, "n": 3}, steps_total=8
    )
    assert (written.phase, written.adapter, written.parent, written.steps_total) == ("gate", "sql@1", "sql@0", 8)
    assert written.report == {"gain": 0.5, "n": 3}
    for field in ("state", "epoch", "owner", "number"):
        with pytest.raises(TypeError, match=field):
            await rounds.update(leased.id, 1, **{field: 3})


async def test_steps_are_added_once(rounds: RoundStore) -> None:
    leased = await start(rounds)
    for number, reward in ((1, 0.1), (2, 0.2), (2, 0.9), (1, 0.8)):
        await rounds.add_step(leased.id, 1, Step(leased.id, number, {"reward": reward, "loss": math.nan}, 5.0))
    found = await rounds.steps(leased.id)
    assert [(step.number, step.metrics["reward"], step.created_at) for step in found] == [(1, 0.1, 5.0), (2, 0.2, 5.0)]
    assert math.isnan(found[0].metrics["loss"])
    after = await rounds.get(leased.id)
    assert after is not None
    assert after.steps_done == 2


async def test_a_second_lease_replaces_what_the_lost_one_did(rounds: RoundStore) -> None:
    leased = await start(rounds)
    for number in (1, 2, 3):
        await rounds.add_step(leased.id, 1, Step(leased.id, number, {"lease": 1}))
    await fall_silent(rounds)
    again = await rounds.lease(leased.id, "w2")
    assert again is not None
    assert again.steps_done == 0
    assert len(await rounds.steps(leased.id)) == 3  # kept until the new lease goes on: it may resume from step 2
    await rounds.add_step(leased.id, again.epoch, Step(leased.id, 2, {"lease": 2}))
    assert [(step.number, step.metrics["lease"]) for step in await rounds.steps(leased.id)] == [(1, 1), (2, 2)]


async def test_a_round_ends_once(rounds: RoundStore) -> None:
    leased = await start(rounds)
    ended = await rounds.finish(leased.id, 1, RoundState.PROMOTED, "better", report={"gain": 0.2}, adapter="sql@1")
    assert (ended.state, ended.reason, ended.report) == (RoundState.PROMOTED, "better", {"gain": 0.2})
    assert ended.ended_at >= ended.started_at > 0
    with pytest.raises(Fenced):
        await rounds.finish(leased.id, 1, RoundState.FAILED, "again")
    with pytest.raises(ValueError, match="running"):
        await rounds.finish(leased.id, 1, RoundState.RUNNING, "")
    assert await rounds.get(leased.id) == ended


@pytest.mark.parametrize("epoch", [0, 2])
async def test_another_epoch_can_write_nothing(rounds: RoundStore, database: Database, epoch: int) -> None:
    leased = await start(rounds)
    await TaskStore(database).create(Task("sql"))
    adapters, fence = AdapterStore(database), (leased.id, epoch)
    await adapters.add(Adapter("sql@0", "sql", "/a", {}))
    writes = [
        lambda: rounds.heartbeat(leased.id, epoch),
        lambda: rounds.update(leased.id, epoch, phase="gate"),
        lambda: rounds.add_step(leased.id, epoch, Step(leased.id, 1, {})),
        lambda: rounds.finish(leased.id, epoch, RoundState.PROMOTED, ""),
        lambda: adapters.add(Adapter("sql@1", "sql", "/a", {}), epoch_of_round=fence),
        lambda: adapters.set_status("sql@0", "champion", epoch_of_round=fence),
        lambda: TaskStore(database).flip_champion("sql", "sql@1", expected_generation=0, epoch_of_round=fence),
    ]
    for write in writes:
        with pytest.raises(Fenced):
            await write()
    assert await rounds.get(leased.id) == leased
    assert await rounds.steps(leased.id) == []
    assert [adapter.status for adapter in await adapters.list()] == ["candidate"]
    assert await TaskStore(database).list() == [await TaskStore(database).get("sql")]
    assert (await TaskStore(database).list())[0].champion == ""


async def test_a_silent_round_is_queued_again_and_its_trainer_fenced_out(rounds: RoundStore) -> None:
    leased = await start(rounds)
    assert await rounds.reap(lost_after_s=60) == []
    (reaped,) = await fall_silent(rounds)
    assert (reaped.id, reaped.state, reaped.epoch) == (leased.id, RoundState.QUEUED, 2)
    assert "w1" in reaped.reason
    with pytest.raises(Fenced):
        await rounds.heartbeat(leased.id, leased.epoch)
    assert await rounds.queued() == [reaped]
    again = await rounds.lease(leased.id, "w2")
    assert again is not None
    assert (again.epoch, again.started_at) == (3, leased.started_at)
    with pytest.raises(Fenced):
        await rounds.heartbeat(leased.id, leased.epoch)
    assert (await rounds.heartbeat(leased.id, 3)).owner == "w2"


async def test_a_round_that_loses_every_worker_fails(rounds: RoundStore) -> None:
    leased = await start(rounds)
    await fall_silent(rounds)
    await rounds.lease(leased.id, "w2")
    (reaped,) = await fall_silent(rounds)
    assert reaped.state is RoundState.FAILED
    assert reaped.reason == "lost its worker w2, lease 2"
    assert reaped.ended_at > 0
    assert await rounds.last_ended("sql") == reaped
    assert await fall_silent(rounds) == []


async def test_of_reapers_at_once_one_takes_the_round(rounds: RoundStore) -> None:
    await start(rounds)
    await asyncio.sleep(0.03)
    results = await asyncio.gather(*(rounds.reap(lost_after_s=0.02) for _ in range(4)))
    assert sorted(len(result) for result in results) == [0, 0, 0, 1]


async def test_a_lost_round_that_should_be_cancelled_is(rounds: RoundStore) -> None:
    leased = await start(rounds)
    await rounds.request_cancel(leased.id)
    (reaped,) = await fall_silent(rounds)
    assert (reaped.state, reaped.ended_at > 0) == (RoundState.CANCELLED, True)


async def test_cancelling(rounds: RoundStore) -> None:
    queued = await rounds.create("sql", {})
    cancelled = await rounds.request_cancel(queued.id)
    assert (cancelled.state, cancelled.cancel_requested, cancelled.ended_at > 0) == (RoundState.CANCELLED, True, True)
    assert await rounds.request_cancel(queued.id) == cancelled
    assert await rounds.lease(queued.id, "w") is None
    with pytest.raises(NotFound):
        await rounds.request_cancel("rd_none")

    running = await start(rounds)
    asked = await rounds.request_cancel(running.id)
    assert (asked.state, asked.cancel_requested, asked.ended_at) == (RoundState.RUNNING, True, 0)
    await rounds.finish(running.id, running.epoch, RoundState.PROMOTED, "was faster")
    with pytest.raises(Conflict):
        await rounds.request_cancel(running.id)


async def test_lists(rounds: RoundStore) -> None:
    first = await rounds.create("a", {})
    await asyncio.sleep(0.002)  # SQLite's clock counts milliseconds
    second = await rounds.create("b", {})
    assert [row.id for row in await rounds.list()] == [second.id, first.id]
    assert [row.id for row in await rounds.list("a")] == [first.id]
    assert [row.id for row in await rounds.list(limit=1)] == [second.id]
    assert [row.id for row in await rounds.queued()] == [first.id, second.id]
    assert await rounds.last_ended("a") is None
    await rounds.request_cancel(first.id)
    third = await rounds.create("a", {})
    await rounds.request_cancel(third.id)
    last = await rounds.last_ended("a")
    assert last is not None
    assert last.id == third.id
