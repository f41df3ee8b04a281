"""A round whose trainer is killed again and again ends with the weights of one that was never interrupted."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from server.domain import AdapterStatus, Round, RoundState
from tests.integration.trainer.conftest import EMBEDDED, ROOT, SERVICES

STEPS = 3
WEIGHTS = "adapter_model.safetensors"
Live = Callable[[Round, str], int]


@pytest.fixture
def live(settings) -> Iterator[Live]:
    """Let a trainer do a leased round until it dies at a point, or to its end; gives its exit status."""
    log = settings.data_dir / "trainer.log"
    with log.open("w") as file:
        zygote = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.integration.trainer.mortal_trainer"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, cwd=ROOT, env=settings.environment(),
        )  # fmt: skip

    def ask(row: Round, point: str) -> int:
        zygote.stdin.write(f"{row.id} {row.epoch} {point}\n")
        zygote.stdin.flush()
        for line in zygote.stdout:  # the trainer's own log comes here too
            if line.startswith("ended "):
                status = int(line.removeprefix("ended "))
                assert status in (0, -9), log.read_text()[-4000:]
                return status
        raise AssertionError(log.read_text()[-4000:])

    yield ask
    zygote.stdin.close()
    try:
        zygote.wait(10)
    except subprocess.TimeoutExpired:
        zygote.kill()
        zygote.wait(10)
    zygote.stdout.close()


async def lease_again(stores, row: Round) -> Round:
    await stores.rounds.reap(lost_after_s=-1.0, max_leases=99)
    again = await stores.rounds.lease(row.id, "test:next")
    assert again is not None
    assert again.epoch > row.epoch
    return again


async def begin(stores, **options) -> Round:
    created = await stores.rounds.create("letters", {"steps": STEPS, **options})
    leased = await stores.rounds.lease(created.id, "test:first")
    assert leased is not None
    return leased


async def read_weights(stores, row: Round) -> str:
    """Read the hash of the weights that a round left, and keep rounds after it from going on from them."""
    ended = await stores.rounds.get(row.id)
    assert (ended.state, ended.reason) == (RoundState.INCONCLUSIVE, "as the test says")
    made = await stores.adapters.get(ended.adapter)
    await stores.adapters.set_status(made.name, AdapterStatus.REJECTED)
    return made.files[WEIGHTS]


async def replay(stores, live: Live, row: Round, *, flip: bool = False) -> tuple[Round, str]:
    """Run a round that nobody interrupts and whose rollouts are those of `row`, or differ from them in one reward."""
    before = await stores.rounds.get(row.id)
    again = await begin(stores)
    for step in range(1, STEPS + 1):
        members = await stores.rollouts.replay(row.id, step)
        assert members
        if flip and step == 1:
            place = next(number for number, one in enumerate(members) if not one.logged)
            members[place] = replace(members[place], reward=1.0 - (members[place].reward or 0.0))
        await stores.rollouts.record((again.id, again.epoch), step, members)
    await stores.rounds.update(again.id, again.epoch, report={"recipe": before.report["recipe"]})
    again = await stores.rounds.get(again.id)
    assert live(again, "none") == 0
    ended = await stores.rounds.get(again.id)
    assert (ended.report["replayed_steps"], ended.parent) == (STEPS, before.parent)
    return again, await read_weights(stores, again)


async def kill_at(stores, live: Live, row: Round, *points: str) -> Round:
    """Let one trainer after the other die."""
    for point in points:
        assert live(row, point) == -9, point
        row = await lease_again(stores, row)
    assert live(row, "none") == 0
    return row


@pytest.mark.slow
async def test_the_weights_are_those_of_the_round_that_was_never_interrupted(settings, stores, engine, task, live):
    points = ("sampling 1", "kept 1", "updated 2", "pushing 2", "gate")
    row = await kill_at(stores, live, await begin(stores), *points)
    left = await read_weights(stores, row)
    steps = await stores.rounds.steps(row.id)
    assert [step.number for step in steps] == [1, 2, 3]
    assert sum(step.metrics["updates"] for step in steps) >= 1
    assert not [name for name in (await engine.state()).adapters if name.startswith("letters@")]  # no push is left
    sampled = {
        one.adapter for step in (1, 2, 3) for one in await stores.rollouts.replay(row.id, step) if not one.logged
    }
    assert [name.partition("-")[0] for name in sorted(sampled)] == ["letters@1.0", "letters@1.1", "letters@1.2"]

    _, replayed = await replay(stores, live, row)
    assert replayed == left
    _, other = await replay(stores, live, row, flip=True)
    assert other != left  # the comparison can tell


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("settings", [EMBEDDED, SERVICES], indirect=True)
@pytest.mark.parametrize(
    "point",
    ["none"]
    + [f"{what} {step}" for what in ("sampling", "kept", "updated", "pushing") for step in (1, 2, 3)]
    + ["gate"],
)
async def test_wherever_it_was_killed(settings, stores, task, live, point):
    points = [] if point == "none" else [point]
    row = await kill_at(stores, live, await begin(stores), *points)
    left = await read_weights(stores, row)
    assert (await replay(stores, live, row))[1] == left


@pytest.mark.slow
async def test_another_recipe_begins_the_round_from_nothing(stores, task, live):
    row = await begin(stores)
    assert live(row, "updated 2") == -9
    kept = await stores.rollouts.replay(row.id, 1)
    options = {**task.training.options, "learning_rate": 2e-2}
    await stores.tasks.update("letters", training=replace(task.training, options=options))
    row = await lease_again(stores, row)
    assert live(row, "kept 1") == -9
    assert await stores.rollouts.replay(row.id, 1) != kept
    assert await stores.rollouts.replay(row.id, 2) == []
    assert "replayed_steps" not in (await stores.rounds.get(row.id)).report
