"""The worker, its round's process, and what becomes of both when somebody is killed."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from server.broker import RUN_ROUND
from server.domain import RoundState
from server.doorbell import Doorbell
from tests.integration.trainer.conftest import EMBEDDED, SERVICES, wait_for_round

LONG = {"steps": 500}


def is_training(row) -> bool:
    return row.state is RoundState.RUNNING and row.phase == "training"


async def wait_until_gone(processes: list[psutil.Process], within_s: float) -> float:
    started = time.monotonic()
    while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes):
        assert time.monotonic() - started < within_s, processes
        await asyncio.sleep(0.05)
    return time.monotonic() - started


@pytest.mark.parametrize("settings", [EMBEDDED, SERVICES], indirect=True)
async def test_a_rung_round_runs_to_its_end(settings, stores, task, start_worker):
    start_worker()
    created = await stores.rounds.create("letters", {"steps": 1})
    Doorbell(settings).ring_round(created.id)
    ended = await wait_for_round(stores, created.id, lambda row: row.state.ended)
    assert ended.state in (RoundState.PROMOTED, RoundState.INCONCLUSIVE, RoundState.REGRESSED)
    assert ended.report["n"] == 6
    assert len(await stores.rounds.steps(created.id)) == 1


@pytest.mark.parametrize("settings", [EMBEDDED, SERVICES], indirect=True)
async def test_a_killed_worker_leaves_no_trainer_and_the_round_is_begun_again(settings, stores, task, start_worker):
    doorbell = Doorbell(settings)
    worker = start_worker()
    created = await stores.rounds.create("letters", LONG)
    doorbell.ring_round(created.id)
    first = await wait_for_round(stores, created.id, is_training)
    trainers = worker.trainers()
    assert trainers
    os.kill(worker.process.pid, signal.SIGKILL)
    await wait_until_gone(trainers, within_s=2.0)

    second = start_worker()
    await asyncio.sleep(settings.worker_lost_after_s)
    doorbell.ring_tick()
    again = await wait_for_round(stores, created.id, lambda row: is_training(row) and row.epoch > first.epoch)
    assert again.owner != first.owner

    os.kill(second.process.pid, signal.SIGKILL)
    start_worker()
    await asyncio.sleep(settings.worker_lost_after_s)
    doorbell.ring_tick()
    lost = await _wait_for_state(stores, created.id, RoundState.FAILED)
    assert "lost its worker" in lost.reason
    assert await stores.rounds.create("letters", {})  # a new one can start


async def test_a_cancelled_round_ends_soon_and_leaves_nothing(settings, stores, engine, task, start_worker):
    worker = start_worker()
    created = await stores.rounds.create("letters", LONG)
    Doorbell(settings).ring_round(created.id)
    await wait_for_round(stores, created.id, is_training)
    trainers = worker.trainers()
    await stores.rounds.request_cancel(created.id)
    ended = await wait_for_round(stores, created.id, lambda row: row.state.ended, within_s=10)
    assert (ended.state, ended.reason) == (RoundState.CANCELLED, "cancelled on request")
    await wait_until_gone(trainers, within_s=1.0)
    assert worker.process.poll() is None
    assert not [name for name in (await engine.state()).adapters if name.startswith("letters@")]
    assert not (settings.rounds_dir / created.id / "pushes").exists()
    assert ended.report["budget"]["tokens"] >= 0


async def test_a_trainer_that_was_killed_fails_its_round_with_the_reason(settings, stores, task, start_worker):
    worker = start_worker()
    created = await stores.rounds.create("letters", LONG)
    Doorbell(settings).ring_round(created.id)
    await wait_for_round(stores, created.id, is_training)
    for trainer in worker.trainers():
        trainer.kill()
    ended = await _wait_for_state(stores, created.id, RoundState.FAILED)
    assert ended.reason.startswith("the trainer was killed by SIGKILL")


async def test_a_round_that_cannot_run_fails_with_its_own_words(settings, stores, task, start_worker):
    start_worker()
    created = await stores.rounds.create("letters", {"step": 3})
    Doorbell(settings).ring_round(created.id)
    ended = await _wait_for_state(stores, created.id, RoundState.FAILED)
    assert ended.reason.startswith("unknown training option 'step': did you mean 'steps'?")


async def test_a_worker_that_is_told_to_stop_takes_its_trainer_along(settings, stores, task, start_worker):
    worker = start_worker()
    created = await stores.rounds.create("letters", LONG)
    Doorbell(settings).ring_round(created.id)
    await wait_for_round(stores, created.id, is_training)
    trainers = worker.trainers()
    worker.process.send_signal(signal.SIGTERM)
    await wait_until_gone(trainers, within_s=3.0)
    worker.process.wait(10)
    row = await stores.rounds.get(created.id)
    assert row.state is RoundState.RUNNING  # for the reaper, which gives it to another worker


async def test_a_tick_starts_what_is_due_and_rings(settings, stores, task, start_worker):
    start_worker()
    policy = {"train_on_new_failures": 1, "options": {**task.training.options, "steps": 1}}
    await stores.tasks.update("letters", training=type(task.training)(**policy))
    Doorbell(settings).ring_tick()
    deadline = time.monotonic() + 30
    while not (rounds := await stores.rounds.list("letters")):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    ended = await wait_for_round(stores, rounds[0].id, lambda row: row.state.ended)
    assert ended.state is not RoundState.FAILED


async def _wait_for_state(stores, round_id: str, state: RoundState, within_s: float = 60.0):
    deadline = time.monotonic() + within_s
    while (row := await stores.rounds.get(round_id)).state is not state:
        assert time.monotonic() < deadline, row
        await asyncio.sleep(0.1)
    return row


def test_the_worker_never_imports_torch():
    code = "import sys, trainer.worker; assert 'torch' not in sys.modules; print(sorted(trainer.worker.app.tasks))"
    told = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, timeout=60)
    assert RUN_ROUND in told.stdout.decode()
