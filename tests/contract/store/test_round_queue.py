"""The queue of each pool, on both dialects: whose turn it is, and that one round of a pool runs at a time."""

import asyncio
from collections import Counter

import msgspec
import pytest

from server.domain import Check, CheckState, Round, RoundState, Task, TrainingPolicy
from server.store.database import Database
from server.store.rounds import RoundStore
from server.store.tasks import TaskStore
from server.store.trainers import TrainerStore


@pytest.fixture
def rounds(database: Database) -> RoundStore:
    return RoundStore(database)


async def run_next(rounds: RoundStore, pool: str = "default") -> Round:
    leased = await rounds.lease_next(pool, "w")
    assert leased is not None
    return await rounds.finish(leased.id, leased.epoch, RoundState.INCONCLUSIVE, "no clear difference")


async def test_one_round_of_a_pool_runs_whoever_asks_and_whichever_way(rounds: RoundStore, database_url: str) -> None:
    queued = [await rounds.create(task, {}) for task in ("sql", "chat", "sums")]
    others = [Database(database_url) for _ in range(6)]
    try:
        for other in others:
            await other.ping()
        asks = [RoundStore(db).lease_next("default", f"w{number}") for number, db in enumerate(others)]
        asks += [RoundStore(db).lease(one.id, "by id") for db, one in zip(others, queued, strict=False)]
        won = [one for one in await asyncio.gather(*asks) if one is not None]
    finally:
        for other in others:
            await other.close()
    assert len(won) == 1
    assert [one.state for one in await rounds.list()].count(RoundState.RUNNING) == 1
    assert await rounds.lease_next("default", "late") is None
    await rounds.finish(won[0].id, won[0].epoch, RoundState.FAILED, "no luck")
    after = await rounds.lease_next("default", "late")
    assert after is not None
    assert after.id != won[0].id


async def test_a_task_whose_last_round_ended_longest_ago_goes_first(rounds: RoundStore) -> None:
    for task in ("sql", "chat"):
        await rounds.create(task, {})
        await run_next(rounds)
    for task in ("chat", "sql", "new", "newer"):
        await rounds.create(task, {})
    waiting = await rounds.queued()
    assert [one.task for one in waiting] == ["new", "newer", "sql", "chat"]
    assert [one.place for one in waiting] == [1, 2, 3, 4]
    assert [(await run_next(rounds)).task for _ in range(4)] == ["new", "newer", "sql", "chat"]


async def test_no_task_starves_while_another_queues_again_and_again(rounds: RoundStore) -> None:
    await rounds.create("greedy", {})
    await rounds.create("patient", {})
    await rounds.create("rare", {})
    ran: list[str] = []
    for _ in range(12):
        ended = await run_next(rounds)
        ran.append(ended.task)
        if ended.task != "rare":
            await rounds.create(ended.task, {})  # at once again
        if len(ran) == 6:
            await rounds.create("rare", {})
            assert (await rounds.queued())[0].task == "rare"
    assert ran[:3] == ["greedy", "patient", "rare"]
    assert Counter(ran) == {"greedy": 5, "patient": 5, "rare": 2}
    assert all(ran[index] != ran[index + 1] for index in range(11))


async def test_what_was_cancelled_before_it_began_takes_nobodys_turn(rounds: RoundStore) -> None:
    await rounds.create("sql", {})
    await run_next(rounds)
    withdrawn = await rounds.create("chat", {})
    await rounds.request_cancel(withdrawn.id)
    await rounds.create("sql", {})
    await rounds.create("chat", {})
    assert [one.task for one in await rounds.queued()] == ["chat", "sql"]


async def test_a_round_waits_in_its_tasks_pool_and_pools_run_side_by_side(
    rounds: RoundStore, database: Database
) -> None:
    tasks = TaskStore(database)
    await tasks.create(Task("big", training=TrainingPolicy(pool="h100")))
    await tasks.create(Task("small"))
    assert (await tasks.get("big")).training.pool == "h100"
    big, small = await rounds.create("big", {}), await rounds.create("small", {})
    assert (big.pool, big.place, small.pool, small.place) == ("h100", 1, "default", 1)
    assert await rounds.lease_next("elsewhere", "w") is None
    assert (await rounds.lease_next("default", "w1")).id == small.id
    assert not await rounds.is_idle("default")
    assert await rounds.is_idle("elsewhere")
    assert (await rounds.get(big.id)).place == 1
    running = await rounds.lease_next("h100", "w2")
    assert (running.id, running.place) == (big.id, 0)


async def test_a_lost_round_frees_its_pool_once_it_was_reaped(rounds: RoundStore) -> None:
    await rounds.create("sql", {})
    await rounds.create("chat", {})
    lost = await rounds.lease_next("default", "w1")
    await asyncio.sleep(0.03)
    assert await rounds.lease_next("default", "w2") is None
    assert [one.id for one in await rounds.reap(lost_after_s=0.02)] == [lost.id]
    assert (await rounds.lease_next("default", "w2")).id == lost.id


async def test_places_show_wherever_a_round_is_read(rounds: RoundStore) -> None:
    first, second = await rounds.create("sql", {}), await rounds.create("chat", {})
    assert (first.place, second.place) == (1, 2)
    assert {one.task: one.place for one in await rounds.list()} == {"sql": 1, "chat": 2}
    await rounds.request_cancel(first.id)
    assert (await rounds.get(second.id)).place == 1
    assert (await rounds.get(first.id)).place == 0


async def test_workers_say_that_they_live_and_what_they_found(database: Database) -> None:
    trainers = TrainerStore(database)
    found = Check("engine", CheckState.FAILED, "it has no LoRA", "--enable-lora")
    await trainers.report("gpu:1", "default", [found])
    await trainers.report("gpu:1", "default")
    await trainers.report("gpu:2", "h100")
    one, two = await trainers.live(60.0)
    assert (one.id, [msgspec.convert(check, Check) for check in one.preflight["checks"]]) == ("gpu:1", [found])
    assert one.preflight["at"] == pytest.approx(one.seen_at, abs=5)
    assert (two.pool, two.preflight) == ("h100", {})
    await asyncio.sleep(0.03)
    assert await trainers.live(0.01) == []
    await trainers.leave("gpu:1")
    assert [found.id for found in await trainers.live(60.0)] == ["gpu:2"]
