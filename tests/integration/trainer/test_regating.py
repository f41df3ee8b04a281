"""A round that only gates: the champion against the base, under the prompts of today."""

import pytest

from server.domain import Adapter, RoundState
from server.orchestration.fingerprints import list_doubts
from tests.fixtures.models import make_adapter
from tests.integration.trainer.conftest import OPTIONS
from trainer import gate_round
from trainer.errors import RoundFailed
from trainer.round import Desk, run_round
from trainer.settings import TrainerSettings


async def sit_down(stores, settings, engine, task) -> Desk:
    created = await stores.rounds.create(task.name, {"gate_only": True})
    leased = await stores.rounds.lease(created.id, "test:1")
    options = TrainerSettings().override(OPTIONS, leased.options)
    return Desk(leased, await stores.tasks.get(task.name), stores, engine, settings, options)


@pytest.mark.parametrize("decision", ["promoted", "inconclusive", "regressed"])
async def test_a_champion_is_gated_under_the_prompts_of_today(
    monkeypatch, stores, settings, engine, task, model_path, decision
):
    folder = make_adapter(settings.adapters_dir / "letters" / "letters@1", model_path, rank=4)
    made = Adapter("letters@1", "letters", str(folder), {}, fingerprints={"reflection_template": "of before"})
    await stores.adapters.add(made)
    await engine.load_adapter("letters@1", str(folder))
    await stores.tasks.flip_champion("letters", "letters@1", expected_generation=0)
    await stores.tasks.update("letters", prompts={"reflect": "Think again."})
    asked = {}
    judge = gate_round.judge

    async def look(desk, candidate, guest, held_out, **more):
        asked.update(
            champion=desk.task.champion, candidate=candidate, prompts={one.prompts["reflect"] for one in held_out}
        )
        report = await judge(desk, candidate, guest, held_out, **more)
        return {**report, "decision": decision, "reason": "as the test says"}

    monkeypatch.setattr(gate_round, "judge", look)
    desk = await sit_down(stores, settings, engine, task)
    try:
        state, reason = await run_round(desk)
    finally:
        await engine.unload_adapter("letters@1")

    assert asked == {"champion": "", "candidate": "letters@1", "prompts": {"Think again."}}
    assert state is RoundState(decision)
    assert "as the test says" in reason
    served = await stores.tasks.get("letters")
    assert (served.champion, served.generation) == ("letters@1", 1)  # it moves nothing
    doubts = list_doubts(await stores.adapters.get("letters@1"), served)
    assert bool(doubts) is (decision != "promoted")
    if decision == "regressed":
        assert "mulligan adapters rollback letters" in reason


async def test_without_a_champion_there_is_nothing_to_gate(stores, settings, engine, task):
    with pytest.raises(RoundFailed, match="no champion to gate"):
        await run_round(await sit_down(stores, settings, engine, task))
