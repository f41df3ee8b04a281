"""Rounds by `accelerate launch`, on two ranks that compute on the CPU: to their end, cancelled, killed, begun again."""

import asyncio
import os
import signal
from dataclasses import replace

import psutil
import pytest

from server.domain import AdapterStatus, RoundState
from server.doorbell import Doorbell
from tests.integration.trainer.conftest import wait_for_round
from tests.integration.trainer.test_worker import is_training, wait_until_gone
from trainer import jobs

LONG = {"steps": 500}


@pytest.fixture
def spread(monkeypatch, tmp_path):
    """Let rounds train on two ranks."""
    config = tmp_path / "accelerate.yaml"
    config.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_processes: 2\n")
    monkeypatch.setenv("MULLIGAN_TRAINER__ACCELERATE_CONFIG", str(config))
    monkeypatch.setenv("MULLIGAN_TRAINER__DEVICE", "cpu")
    return config


async def test_what_is_not_supported_fails_the_round_before_a_trainer_is_started(settings, stores, task, spread):
    spread.write_text("distributed_type: FSDP\nnum_processes: 2\n")
    created = await stores.rounds.create("letters", {})
    assert await jobs.run_round(created.id, settings, lambda: False) == RoundState.FAILED
    row = await stores.rounds.get(created.id)
    assert (
        f"config {spread}: distributed_type is FSDP, rounds support MULTI_GPU alone: set distributed_type" in row.reason
    )
    assert not (settings.rounds_dir / row.id / "round.log").exists()


async def test_a_round_on_two_ranks_runs_to_its_end(settings, stores, engine, task, spread):
    created = await stores.rounds.create("letters", {"steps": 2})
    seen: set[str] = set()

    def look() -> bool:
        for one in psutil.Process().children(recursive=True):
            try:
                seen.add(next((word for word in one.cmdline() if word.startswith("trainer.")), ""))
            except psutil.Error:
                continue
        return False

    state = await jobs.run_round(created.id, settings, look)
    row = await stores.rounds.get(created.id)
    assert state in (RoundState.PROMOTED, RoundState.INCONCLUSIVE, RoundState.REGRESSED), row.reason
    assert {"trainer.launcher", "trainer.rank"} <= seen
    assert "trainer.round" not in seen
    steps = await stores.rounds.steps(created.id)
    assert [step.number for step in steps] == [1, 2]
    assert sum(step.metrics["updates"] for step in steps) >= 1
    assert row.report["n"] == 6
    assert not [name for name in (await engine.state()).adapters if "-" in name]  # no push is left


@pytest.mark.nightly
@pytest.mark.timeout(1200)
async def test_a_cancelled_round_leaves_no_rank(settings, stores, engine, task, spread, start_worker):
    worker = start_worker()
    created = await stores.rounds.create("letters", LONG)
    Doorbell(settings).ring_round(created.id)
    await wait_for_round(stores, created.id, is_training)
    trainers = worker.trainers()
    assert len(find_ranks(trainers)) == 2
    await stores.rounds.request_cancel(created.id)
    ended = await wait_for_round(stores, created.id, lambda row: row.state.ended, within_s=60)
    assert (ended.state, ended.reason) == (RoundState.CANCELLED, "cancelled on request")
    await wait_until_gone(trainers, within_s=1.0)  # they were gone before it said so
    assert not [name for name in (await engine.state()).adapters if name.startswith("letters@")]


@pytest.mark.nightly
@pytest.mark.timeout(1200)
async def test_a_rank_that_is_killed_fails_the_round_with_that_reason(settings, stores, task, spread, start_worker):
    worker = start_worker()
    created = await stores.rounds.create("letters", LONG)
    Doorbell(settings).ring_round(created.id)
    await wait_for_round(stores, created.id, is_training)
    trainers = worker.trainers()
    second = next(one for one in find_ranks(trainers) if one.environ().get("LOCAL_RANK") == "1")
    second.kill()
    async with asyncio.timeout(120):
        while not (row := await stores.rounds.get(created.id)).state.ended:
            await asyncio.sleep(0.1)
    assert row.state is RoundState.FAILED
    assert row.reason == "rank 1 of 2 was killed by SIGKILL (out of memory?)"
    await wait_until_gone(trainers, within_s=1.0)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
async def test_after_a_kill_it_ends_with_the_weights_of_a_round_that_was_not(
    settings, stores, task, spread, start_worker
):
    await stores.tasks.update("letters", training=replace(task.training, promotion="approve"))  # the base stays
    worker = start_worker()
    created = await stores.rounds.create("letters", {"steps": 3})
    Doorbell(settings).ring_round(created.id)
    async with asyncio.timeout(240):
        while not await stores.rounds.steps(created.id):
            await asyncio.sleep(0.05)
    trainers = worker.trainers()
    os.kill(worker.process.pid, signal.SIGKILL)
    await wait_until_gone(trainers, within_s=60.0)

    await stores.rounds.reap(lost_after_s=-1.0, max_leases=99)
    await jobs.run_round(created.id, settings, lambda: False)
    row = await stores.rounds.get(created.id)
    assert row.report["replayed_steps"] >= 1
    left = await read_weights(stores, row)

    again = await stores.rounds.create("letters", {"steps": 3})
    held = await stores.rounds.lease(again.id, "test")
    for step in (1, 2, 3):
        await stores.rollouts.record((held.id, held.epoch), step, await stores.rollouts.replay(row.id, step))
    await stores.rounds.update(held.id, held.epoch, report={"recipe": row.report["recipe"]})
    await stores.rounds.reap(lost_after_s=-1.0, max_leases=99)
    await jobs.run_round(again.id, settings, lambda: False)
    other = await stores.rounds.get(again.id)
    assert other.report["replayed_steps"] == 3
    assert await read_weights(stores, other) == left


async def read_weights(stores, row) -> str:
    """Read the hash of the weights that a round left, and keep rounds after it from going on from them."""
    assert row.state in (RoundState.INCONCLUSIVE, RoundState.REGRESSED), row.reason
    made = await stores.adapters.get(row.adapter)
    if made.status is AdapterStatus.CANDIDATE:
        await stores.adapters.set_status(made.name, AdapterStatus.REJECTED)
    return made.files["adapter_model.safetensors"]


def find_ranks(trainers: list[psutil.Process]) -> list[psutil.Process]:
    """Find the ranks; their launcher names them too, after itself."""
    return [
        one for one in trainers if next((w for w in one.cmdline() if w.startswith("trainer.")), "") == "trainer.rank"
    ]
