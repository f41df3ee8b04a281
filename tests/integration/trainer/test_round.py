"""Whole rounds on a real engine and a real store."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from server.domain import AdapterStatus, Round, RoundState, Task, TrainingPolicy
from server.errors import Fenced, StoreUnavailable
from tests.fixtures.models import make_adapter
from tests.integration.trainer.conftest import EMBEDDED, OPTIONS, SGLANG
from trainer import gate
from trainer.errors import RoundFailed
from trainer.round import Desk, insist, run_round
from trainer.settings import TrainerSettings

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


async def lease(stores, task: Task, **options) -> Round:
    created = await stores.rounds.create(task.name, options)
    leased = await stores.rounds.lease(created.id, "test:1")
    assert leased is not None
    return leased


async def sit_down(stores, settings, engine, task: Task, **options) -> Desk:
    leased = await lease(stores, task, **options)
    merged = TrainerSettings().override(OPTIONS, options)
    return Desk(leased, task, stores, engine, settings, merged)


def decide(monkeypatch, decision: str) -> None:
    """Let the gate measure as it does, and say `decision`."""
    judge = gate.judge_candidate

    async def judge_and_decide(*args, **kwargs):
        return {**await judge(*args, **kwargs), "decision": decision, "reason": "as the test says"}

    monkeypatch.setattr(gate, "judge_candidate", judge_and_decide)


@pytest.mark.parametrize("settings", [EMBEDDED, SGLANG], indirect=True)
async def test_a_round_that_passes_the_gate_is_served(monkeypatch, stores, settings, engine, task):
    decide(monkeypatch, "promoted")
    desk = await sit_down(stores, settings, engine, task)
    left = make_adapter(settings.data_dir / "left", Path(settings.engine.model), rank=4)
    await engine.load_adapter("letters@1.7-0123ab", str(left))  # by a trainer that was killed
    state, reason = await run_round(desk)
    await stores.rounds.finish(desk.round.id, desk.round.epoch, state, reason)

    assert (state, reason) == (RoundState.PROMOTED, "as the test says")
    served = await stores.tasks.get("letters")
    assert (served.champion, served.generation) == ("letters@1", 1)
    assert set((await engine.state()).adapters) >= {"letters@1"}
    assert not [name for name in (await engine.state()).adapters if name.startswith("letters@1.")]

    adapter = await stores.adapters.get("letters@1")
    assert adapter.status is AdapterStatus.CHAMPION
    assert set(adapter.files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads((Path(adapter.path) / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    weights = load_file(Path(adapter.path) / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)

    row = await stores.rounds.get(desk.round.id)
    assert (row.steps_done, row.adapter, row.parent, row.phase) == (2, "letters@1", "", "promoting")
    assert row.report["n"] == 6
    steps = await stores.rounds.steps(desk.round.id)
    assert [step.number for step in steps] == [1, 2]
    assert all(step.metrics["logprob_gap"] < 1e-3 for step in steps if step.metrics["updates"])
    assert any(step.metrics["updates"] for step in steps)
    (event,) = [event for event in await stores.events.list() if event.kind == "adapter.promoted"]
    assert event.details["probe_gap"] < 5e-3
    assert event.details["told_apart"]
    await engine.unload_adapter("letters@1")


async def test_an_inconclusive_round_is_gone_on_from(monkeypatch, stores, settings, engine, task):
    decide(monkeypatch, "inconclusive")
    first = await sit_down(stores, settings, engine, task, steps=1)
    state, reason = await run_round(first)
    await stores.rounds.finish(first.round.id, first.round.epoch, state, reason)
    assert state is RoundState.INCONCLUSIVE
    assert (await stores.adapters.get("letters@1")).status is AdapterStatus.CANDIDATE
    assert (await stores.tasks.get("letters")).champion == ""

    second = await sit_down(stores, settings, engine, task, steps=1)
    state, reason = await run_round(second)
    await stores.rounds.finish(second.round.id, second.round.epoch, state, reason)
    assert (await stores.rounds.get(second.round.id)).parent == "letters@1"
    one, two = [
        load_file(settings.adapters_dir / "letters" / name / "adapter_model.safetensors")
        for name in ("letters@1", "letters@2")
    ]
    assert set(one) == set(two)
    assert any((one[name] != two[name]).any() for name in one)
    assert not [name for name in (await engine.state()).adapters if name.startswith("letters@")]


async def test_a_regressed_round_leaves_nothing(monkeypatch, stores, settings, engine, task):
    decide(monkeypatch, "regressed")
    desk = await sit_down(stores, settings, engine, task, steps=1)
    state, _ = await run_round(desk)
    assert state is RoundState.REGRESSED
    assert await stores.adapters.list() == []
    assert not settings.adapters_dir.exists()
    assert not list((desk.folder / "pushes").iterdir())


async def test_a_human_approves_where_the_task_says_so(monkeypatch, stores, settings, engine, task):
    decide(monkeypatch, "promoted")
    careful = replace(task, training=TrainingPolicy(promotion="approve"))
    desk = await sit_down(stores, settings, engine, careful, steps=1)
    state, reason = await run_round(desk)
    assert state is RoundState.INCONCLUSIVE
    assert "waits for approval (`mulligan adapters promote letters@1`)" in reason
    assert (await stores.tasks.get("letters")).champion == ""


async def test_a_champion_that_changed_meanwhile_is_left_alone(monkeypatch, stores, settings, engine, task):
    decide(monkeypatch, "promoted")
    desk = await sit_down(stores, settings, engine, task, steps=1)
    await stores.tasks.flip_champion("letters", "", expected_generation=0)
    state, reason = await run_round(desk)
    assert state is RoundState.INCONCLUSIVE
    assert "the champion changed meanwhile" in reason
    assert (await stores.tasks.get("letters")).generation == 1


async def test_a_stale_trainer_can_do_nothing(stores, settings, engine, task):
    desk = await sit_down(stores, settings, engine, task, steps=1)
    stale = replace(desk, round=replace(desk.round, epoch=desk.round.epoch - 1))
    with pytest.raises(Fenced):
        await run_round(stale)
    assert await stores.rounds.steps(desk.round.id) == []
    assert await stores.adapters.list() == []


async def test_a_store_that_is_away_for_a_moment_costs_no_round(monkeypatch):
    monkeypatch.setattr("trainer.round.STORE_PAUSES_S", (0.0, 0.0))
    calls: list[int] = []

    async def write() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise StoreUnavailable("away")
        return "written"

    assert await insist(write) == "written"
    calls[:] = []
    monkeypatch.setattr("trainer.round.STORE_PAUSES_S", (0.0,))
    with pytest.raises(StoreUnavailable):
        await insist(write)


async def test_too_few_failures_are_said(stores, settings, engine, task):
    desk = await sit_down(stores, settings, engine, task, min_failures=1000)
    with pytest.raises(RoundFailed, match=r"has too few logged failures to learn from: \d+ of 1000"):
        await run_round(desk)
