"""One trainer at a time in each pool, whoever asks: the workers' own loops on PostgreSQL, and real workers."""

import asyncio
import sys
from itertools import pairwise

import pytest

from server.domain import RoundState, Task, TrainingPolicy
from server.doorbell import Doorbell
from server.settings import Settings
from server.store.database import Database
from server.store.rounds import RoundStore
from server.store.tasks import TaskStore
from tests.integration.trainer.conftest import OPTIONS, SERVICES, wait_for_round
from trainer import jobs


async def watch_running(url: str, seen: list[dict[str, int]], done: asyncio.Event) -> None:
    """Note, again and again, how many rounds of each pool run."""
    database = Database(url)
    try:
        while not done.is_set():
            running: dict[str, int] = {}
            for one in await RoundStore(database).list():
                if one.state is RoundState.RUNNING:
                    running[one.pool] = running.get(one.pool, 0) + 1
            seen.append(running)
            await asyncio.sleep(0.01)
    finally:
        await database.close()


async def work_off(settings: Settings, stop: asyncio.Event) -> None:
    """Answer bells as a worker does, one after the other."""
    while not stop.is_set():
        await jobs.run_round("rd_rung", settings, lambda: False)
        await asyncio.sleep(0.01)


@pytest.mark.postgres
async def test_job_loops_run_one_round_of_a_pool_at_a_time_and_serve_every_task(monkeypatch, postgres_url, tmp_path):
    async def start_stub(leased, settings, log_path):
        """Stand in for the trainer, which is not what is tested here: it takes a moment and does not end the round."""
        with log_path.open("ab") as log:
            code = "import time; time.sleep(0.15)"
            return await asyncio.create_subprocess_exec(
                sys.executable, "-S", "-c", code, stdout=log, stderr=log, start_new_session=True
            )

    monkeypatch.setattr(jobs, "start_trainer", start_stub)
    settings = Settings(data_dir=tmp_path, database_url=postgres_url, worker_heartbeat_s=0.1)
    database = Database(postgres_url)
    tasks, rounds = TaskStore(database), RoundStore(database)
    names = ("greedy", "patient", "rare")
    for name in names:
        await tasks.create(Task(name))
    await tasks.create(Task("big", training=TrainingPolicy(pool="h100")))
    for name in (*names, "big"):
        await rounds.create(name, {})
    stop, seen = asyncio.Event(), []
    elsewhere = settings.model_copy(update={"pool": "h100"})
    workers = [asyncio.create_task(work_off(one, stop)) for one in (settings, settings, settings, elsewhere, elsewhere)]
    watcher = asyncio.create_task(watch_running(postgres_url, seen, stop))
    try:
        async with asyncio.timeout(60):
            while True:
                ended = [one for one in await rounds.list() if one.state.ended]
                queued = {one.task for one in await rounds.list() if not one.state.ended}
                if sum(one.task == "greedy" for one in ended) >= 3 and len({one.task for one in ended}) == 4:
                    break
                if "greedy" not in queued:
                    await rounds.create("greedy", {})  # at once again
                await asyncio.sleep(0.01)
    finally:
        stop.set()
        await asyncio.gather(*workers, watcher)
    began = [one.task for one in sorted(ended, key=lambda one: one.started_at) if one.pool == "default"]
    assert set(began[:3]) == set(names)  # the greedy task's second round waited for the others' first
    assert all(count == 1 for running in seen for count in running.values()), seen
    assert any(len(running) == 2 for running in seen)  # two pools work side by side
    spans = sorted((one.started_at, one.ended_at) for one in ended if one.pool == "default")
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    await database.close()


@pytest.mark.nightly
@pytest.mark.parametrize("settings", [SERVICES], indirect=True)
async def test_two_real_workers_train_one_round_of_a_pool_at_a_time(settings, stores, task, start_worker):
    again = await stores.tasks.create(Task("again", retry=task.retry, training=TrainingPolicy(options=OPTIONS)))
    seen, done = [], asyncio.Event()
    watcher = asyncio.create_task(watch_running(settings.database_url, seen, done))
    for _ in range(2):
        start_worker()
    queued = [await stores.rounds.create(name, {"steps": 1}) for name in (task.name, again.name)]
    bell = Doorbell(settings)
    for one in queued:
        bell.ring_round(one.id, one.pool)
    try:
        first = await wait_for_round(stores, queued[0].id, lambda row: row.state.ended)
        for _ in range(240):  # what waits is rung for by the next tick; nobody ticks here but us
            second = await stores.rounds.get(queued[1].id)
            if second.state.ended:
                break
            bell.ring_tick()
            await asyncio.sleep(0.25)
    finally:
        done.set()
        await watcher
    assert first.state is not RoundState.FAILED
    assert second.reason.startswith("task 'again' has too few logged failures")  # it had its turn, and nothing to learn
    assert first.ended_at <= second.started_at
    assert all(count == 1 for running in seen for count in running.values())
