"""Where a round begins, after others that ended in every way, and what is cleared up behind dead trainers."""

from dataclasses import replace

import pytest

from server.domain import Adapter, AdapterStatus, Canary, CanaryPolicy, CanaryStep, Event, RoundState, Task
from server.errors import EngineUnavailable
from server.settings import Settings
from tests.fixtures.engines import ScriptedEngine
from trainer import leftovers
from trainer.desk import Desk, Stores
from trainer.settings import TrainerSettings
from trainer.starting import find_start, fingerprint

INCONCLUSIVE, REGRESSED = RoundState.INCONCLUSIVE, RoundState.REGRESSED
FAILED, CANCELLED, PROMOTED = RoundState.FAILED, RoundState.CANCELLED, RoundState.PROMOTED
KEPT = {INCONCLUSIVE: AdapterStatus.CANDIDATE, REGRESSED: AdapterStatus.REJECTED, PROMOTED: AdapterStatus.CHAMPION}


@pytest.fixture
def stores(database) -> Stores:
    return Stores.open(database)


async def end_rounds(stores: Stores, *states: RoundState) -> None:
    """Let rounds end like this, one after the other; each that decided left an adapter, made under its champion."""
    for state in states:
        created = await stores.rounds.create("sql", {})
        row = await stores.rounds.lease(created.id, "w")
        task = await stores.tasks.get("sql")
        name = ""
        if state in KEPT:
            name = f"sql@{row.number}"
            made = Adapter(name, "sql", f"/{name}", {"a": name}, KEPT[state], row.id, parent=task.champion)
            await stores.adapters.add(made)
        if state is PROMOTED:
            await stores.tasks.flip_champion("sql", name, expected_generation=task.generation)
        await stores.rounds.finish(row.id, row.epoch, state, "x", adapter=name)


async def sit_down(stores: Stores, tmp_path, **options) -> Desk:
    created = await stores.rounds.create("sql", {})
    row = await stores.rounds.lease(created.id, "w")
    task = await stores.tasks.get("sql")
    return Desk(row, task, stores, ScriptedEngine(), Settings(data_dir=tmp_path), TrainerSettings(**options))


@pytest.mark.parametrize(
    ("states", "start"),
    [
        ((), None),
        ((INCONCLUSIVE,), "sql@1"),
        ((INCONCLUSIVE, INCONCLUSIVE, INCONCLUSIVE), "sql@3"),
        ((INCONCLUSIVE, FAILED, CANCELLED), "sql@1"),
        ((INCONCLUSIVE, REGRESSED), None),
        ((INCONCLUSIVE, REGRESSED, FAILED), None),
        ((PROMOTED, INCONCLUSIVE, REGRESSED), "sql@1"),
        ((PROMOTED, INCONCLUSIVE, CANCELLED), "sql@2"),
        ((INCONCLUSIVE, PROMOTED), "sql@2"),
        ((REGRESSED, INCONCLUSIVE), "sql@2"),
    ],
)
async def test_a_round_goes_on_from_what_was_kept(stores, tmp_path, states, start):
    await stores.tasks.create(Task("sql"))
    await end_rounds(stores, *states)
    found = await find_start(await sit_down(stores, tmp_path))
    assert (found.name if found else None) == start


async def test_a_champion_that_changed_meanwhile_ends_the_line(stores, tmp_path):
    await stores.tasks.create(Task("sql"))
    await end_rounds(stores, PROMOTED, INCONCLUSIVE, INCONCLUSIVE)
    await stores.tasks.flip_champion("sql", "", expected_generation=1)  # rolled back by hand
    desk = await sit_down(stores, tmp_path)
    assert await find_start(desk) is None
    await stores.tasks.flip_champion(
        "sql", "sql@1", expected_generation=2
    )  # and back again: compared with it as before
    found = await find_start(replace(desk, task=await stores.tasks.get("sql")))
    assert found.name == "sql@3"


async def test_what_was_rejected_by_hand_ends_the_line(stores, tmp_path):
    await stores.tasks.create(Task("sql"))
    await end_rounds(stores, INCONCLUSIVE, INCONCLUSIVE)
    await stores.adapters.set_status("sql@2", AdapterStatus.REJECTED)
    assert await find_start(await sit_down(stores, tmp_path)) is None


async def test_the_recipe_is_of_what_updates_follow_from(stores, tmp_path):
    await stores.tasks.create(Task("sql"))
    await end_rounds(stores, INCONCLUSIVE)
    desk = await sit_down(stores, tmp_path)
    start = await find_start(desk)
    recipe = fingerprint(desk, start)

    def of(**options) -> str:
        return fingerprint(replace(desk, options=TrainerSettings(**options)), start)

    assert of(max_minutes=3, concurrency=2, replay_share=1, gate_samples=5) == recipe
    assert len({recipe, of(learning_rate=1.0), of(steps=3), of(seed=2), of(group_size=4), fingerprint(desk, None)}) == 6
    assert fingerprint(desk, replace(start, files={"a": "other"})) != recipe


@pytest.mark.parametrize("serves", [None, RoundState.PROMOTED, RoundState.INCONCLUSIVE])
async def test_what_a_dead_trainer_left_is_cleared_up(stores, tmp_path, serves):
    await stores.tasks.create(Task("sql"))
    folder, saved = tmp_path / "rd", tmp_path / "adapters" / "sql@1"
    (folder / "pushes" / "sql@1.2-0123ab").mkdir(parents=True)
    saved.mkdir(parents=True)
    await stores.adapters.add(Adapter("sql@1", "sql", str(saved), {}))
    engine = ScriptedEngine()
    engine.adapters = dict.fromkeys(("sql@1", "sql@1.2-0123ab", "sql@1.1-ffffff", "other@1.1-ffffff", "sql@7"), "/")
    if serves is RoundState.PROMOTED:
        await stores.tasks.flip_champion("sql", "sql@1", expected_generation=0)
    elif serves:  # it is on trial, and the trial says how the round ends
        canary = Canary("cn_1", "sql", "sql@1", "", CanaryPolicy(), (CanaryStep(0.1, 1.0),))
        await stores.canaries.begin(canary, expected_generation=0, event=Event("canary.begun", "sql@1", "round"))
    row = replace((await sit_down(stores, tmp_path)).round, adapter="sql@1")
    assert await leftovers.clear_up(row, folder, engine, stores.adapters, stores.tasks) is serves
    status = (await stores.adapters.get("sql@1")).status
    stands = {RoundState.PROMOTED: AdapterStatus.CHAMPION, RoundState.INCONCLUSIVE: AdapterStatus.CANARY}
    assert status is stands.get(serves, AdapterStatus.REJECTED)
    assert saved.exists() is (serves is not None)
    if not serves:
        assert set(engine.adapters) == {"other@1.1-ffffff", "sql@7"}
        assert not (folder / "pushes").exists()


async def test_an_engine_that_is_away_does_not_hold_up_the_end(stores, tmp_path, monkeypatch):
    await stores.tasks.create(Task("sql"))
    engine = ScriptedEngine()

    async def fail():
        raise EngineUnavailable("away")

    monkeypatch.setattr(engine, "state", fail)
    row = (await sit_down(stores, tmp_path)).round
    assert not await leftovers.clear_up(row, tmp_path / "rd", engine, stores.adapters, stores.tasks)
