"""Whole rounds on a real engine and a real store."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from server.adapters import hot_swap
from server.domain import AdapterStatus, CanaryPolicy, Round, RoundState, Task, TrainingPolicy
from server.errors import Conflict, Fenced, StoreUnavailable
from server.store.database import Database
from server.store.withdrawals import Withdrawals
from tests.fixtures.models import make_adapter
from tests.integration.trainer.conftest import EMBEDDED, OPTIONS, SGLANG
from trainer import gate
from trainer.canaries import CanaryWatch
from trainer.desk import Desk, insist
from trainer.errors import RoundFailed
from trainer.round import run_round
from trainer.settings import TrainerSettings
from trainer.starting import find_start

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
    assert (adapter.verifiers, adapter.flags) == (("early@1",), ())
    assert set(adapter.fingerprints) == {"base_model", "tokenizer", "chat_template", "reflection_template"}
    assert set(adapter.files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads((Path(adapter.path) / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    weights = load_file(Path(adapter.path) / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)

    row = await stores.rounds.get(desk.round.id)
    assert (row.steps_done, row.adapter, row.parent, row.phase) == (2, "letters@1", "", "promoting")
    (traced,) = (await stores.lineage.trace(row.id)).rounds
    failures = {one.id for one in await stores.episodes.failures("letters", limit=1000)}
    assert 0 < traced.count == len(traced.episodes)
    assert set(traced.episodes) <= failures
    for one in traced.episodes:
        (used,) = (await stores.lineage.trace(one)).rounds
        assert (used.round.id, used.adapter.adapter.name) == (row.id, "letters@1")
        assert 1 <= used.step <= 2
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


async def test_a_verifier_that_is_revoked_meanwhile_ends_the_promotion_and_the_line(
    monkeypatch, stores, settings, engine, task
):
    decide(monkeypatch, "promoted")
    judge = gate.judge_candidate

    async def revoke_and_judge(*args, **kwargs):
        database = Database(settings.database_url)
        await Withdrawals(database).revoke("early", 1, "it passes too much")
        await database.close()
        return await judge(*args, **kwargs)

    monkeypatch.setattr(gate, "judge_candidate", revoke_and_judge)
    desk = await sit_down(stores, settings, engine, task, steps=1)
    state, reason = await run_round(desk)
    await stores.rounds.finish(desk.round.id, desk.round.epoch, state, reason)
    assert (state, "early@1" in reason) == (RoundState.INCONCLUSIVE, True)
    assert (await stores.adapters.get("letters@1")).flags == ("trained_on_revoked:early@1",)
    assert (await stores.tasks.get("letters")).champion == ""

    again = await sit_down(stores, settings, engine, task, steps=1)
    assert await find_start(again) is None  # though the last candidate was inconclusive
    with pytest.raises(RoundFailed, match="left out: its verifier early@1 was revoked"):
        await run_round(again)


async def test_a_regressed_round_leaves_nothing(monkeypatch, stores, settings, engine, task):
    decide(monkeypatch, "regressed")
    desk = await sit_down(stores, settings, engine, task, steps=1)
    state, reason = await run_round(desk)
    await stores.rounds.finish(desk.round.id, desk.round.epoch, state, reason)
    assert state is RoundState.REGRESSED
    (rejected,) = await stores.adapters.list()
    assert (rejected.name, rejected.status, rejected.path) == ("letters@1", AdapterStatus.REJECTED, "")
    assert set(rejected.files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert not settings.adapters_dir.exists()
    assert not list((desk.folder / "pushes").iterdir())
    assert not [name for name in (await engine.state()).adapters if name.startswith("letters@")]
    with pytest.raises(Conflict, match="was rejected: by the gate"):
        await hot_swap.promote("letters@1", desk.rooms, actor="test")
    assert (await stores.tasks.get("letters")).champion == ""
    assert await find_start(await sit_down(stores, settings, engine, task, steps=1)) is None


async def test_a_human_approves_where_the_task_says_so(monkeypatch, stores, settings, engine, task):
    decide(monkeypatch, "promoted")
    careful = replace(task, training=TrainingPolicy(promotion="approve"))
    desk = await sit_down(stores, settings, engine, careful, steps=1)
    state, reason = await run_round(desk)
    assert state is RoundState.INCONCLUSIVE
    assert "waits for approval (`mulligan adapters promote letters@1 --comment " in reason
    assert (await stores.tasks.get("letters")).champion == ""


async def test_what_passes_the_gate_is_tried_on_live_traffic_where_the_task_says_so(
    monkeypatch, stores, settings, engine, task
):
    decide(monkeypatch, "promoted")
    trying = replace(task, training=TrainingPolicy(canary=CanaryPolicy(share=0.2, max_hours=1e-6)))
    desk = await sit_down(stores, settings, engine, trying, steps=1)
    state, reason = await run_round(desk)
    await stores.rounds.finish(desk.round.id, desk.round.epoch, state, reason)
    assert (state, "its canary begins with 20 % of live traffic" in reason) == (RoundState.INCONCLUSIVE, True)
    served = await stores.tasks.get("letters")
    assert (served.champion, served.canary, served.canary_share, served.generation) == ("", "letters@1", 0.2, 1)
    assert "letters@1" in (await engine.state()).adapters
    (event,) = [event for event in await stores.events.list() if event.kind == "canary.begun"]
    assert event.details["probe_gap"] < 5e-3

    database = Database(settings.database_url)
    assert await CanaryWatch(settings).look(database) == 1  # its time is over at once
    assert await CanaryWatch(settings).look(database) == 0
    await database.close()
    assert (await stores.tasks.get("letters")).champion == "letters@1"
    assert (await stores.rounds.get(desk.round.id)).state is RoundState.PROMOTED
    await engine.unload_adapter("letters@1")


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
    assert (await stores.lineage.trace(desk.round.id)).rounds[0].count == 0
    assert await stores.adapters.list() == []


async def test_a_store_that_is_away_for_a_moment_costs_no_round(monkeypatch):
    monkeypatch.setattr("trainer.desk.STORE_PAUSES_S", (0.0, 0.0))
    calls: list[int] = []

    async def write() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise StoreUnavailable("away")
        return "written"

    assert await insist(write) == "written"
    calls[:] = []
    monkeypatch.setattr("trainer.desk.STORE_PAUSES_S", (0.0,))
    with pytest.raises(StoreUnavailable):
        await insist(write)


async def test_too_few_failures_are_said(stores, settings, engine, task):
    desk = await sit_down(stores, settings, engine, task, min_failures=1000)
    with pytest.raises(RoundFailed, match=r"has too few logged failures to learn from: \d+ of 1000"):
        await run_round(desk)
