"""Canaries: each move leaves task, adapters, round, canary and audit log in step, and two movers never both win."""

import asyncio
import time
from dataclasses import replace

import pytest

from server.domain import (
    Adapter,
    AdapterStatus,
    Canary,
    CanaryPolicy,
    CanaryState,
    CanaryStep,
    Episode,
    Event,
    Outcome,
    RetryPolicy,
    RoundState,
    Task,
    TrainingPolicy,
    VerifyMode,
    new_id,
)
from server.errors import Conflict, Fenced, NotFound
from server.settings import LogSettings
from server.store.adapters import AdapterStore
from server.store.canaries import CanaryStore
from server.store.canary_figures import CanaryFigures
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.events import EventStore
from server.store.moves import Hand
from server.store.rounds import RoundStore
from server.store.tasks import TaskStore

POLICY = CanaryPolicy(share=0.2, widen=(0.6, 1.0), min_episodes=7, latency_ratio=None)
EVENT = Event("canary.begun", "t@2", "test")
CANARY = Canary(
    "cn_1", "t", "t@2", "t@1", POLICY, (CanaryStep(0.2, 1000.0),), baseline={"failed": 3}, started_at=1000.0
)


@pytest.fixture
async def shop(database: Database) -> Database:
    """A task whose champion is t@1, and t@2 that round 1 left and nobody has decided on."""
    rounds, adapters = RoundStore(database), AdapterStore(database)
    await TaskStore(database).create(Task("t", training=TrainingPolicy(canary=POLICY)))
    made = await rounds.create("t", {})
    leased = await rounds.lease(made.id, "w")
    await adapters.add(Adapter("t@1", "t", "/1", {}))
    await adapters.add(Adapter("t@2", "t", "/2", {}, parent="t@1", round_id=made.id))
    await TaskStore(database).flip_champion("t", "t@1", expected_generation=0)
    await rounds.finish(
        made.id, leased.epoch, RoundState.INCONCLUSIVE, "passed the gate", report={"decision": "promoted"}
    )
    return database


async def begin(database: Database, **more) -> Canary:
    await CanaryStore(database).begin(CANARY, **{"expected_generation": 1, "event": EVENT, **more})
    canary = await CanaryStore(database).find_running("t")
    assert canary is not None
    return canary


async def stand(database: Database) -> dict[str, str]:
    """Say how everything stands, in words that are quickly compared."""
    task = await TaskStore(database).get("t")
    shelf = {one.name: one.status.value for one in await AdapterStore(database).list("t")}
    (made,) = await RoundStore(database).list("t")
    latest = await CanaryStore(database).find_latest("t@2")
    serves = f"{task.champion or 'base'} {task.canary or '-'} {task.canary_share:g} {task.generation}"
    return {"serves": serves, **shelf, "round": made.state.value, "canary": latest.state.value if latest else "none"}


async def test_a_canary_begins_widens_and_becomes_champion(shop: Database) -> None:
    tasks, canaries = TaskStore(shop), CanaryStore(shop)
    canary = await begin(shop)
    assert canary == replace(CANARY, generation=2)
    began = {"serves": "t@1 t@2 0.2 2", "t@1": "champion", "t@2": "canary", "round": "inconclusive"}
    assert await stand(shop) == {**began, "canary": "running"}
    step = CanaryStep(0.6, 2000.0)
    await canaries.widen(canary, step, {"seen": 1}, event=replace(EVENT, kind="canary.widened"))
    canary = await canaries.find_running("t")
    assert (canary.steps, canary.generation, canary.report) == ((CANARY.steps[0], step), 3, {"seen": 1})
    assert (await stand(shop))["serves"] == "t@1 t@2 0.6 3"
    promoted = Event("adapter.promoted", "t@2", "canary", {"reason": "as good"})
    await tasks.flip_champion("t", "t@2", expected_generation=3, event=promoted)
    ended = {"serves": "t@2 - 0 4", "t@1": "retired", "t@2": "champion", "round": "promoted", "canary": "promoted"}
    assert await stand(shop) == ended
    assert await canaries.running() == []
    assert (await canaries.find_latest("t@2")).reason == "as good"
    kinds = [(event.kind, event.details["generation"]) for event in await EventStore(shop).list()]
    assert kinds == [("adapter.promoted", 4), ("canary.widened", 3), ("canary.begun", 2)]


async def test_a_canary_that_is_rolled_back_is_rejected_for_good(shop: Database) -> None:
    canary = await begin(shop)
    hand = Hand("key_1", "it is rude")
    event = Event("canary.rolled_back", "t@2", "key_1")
    how = {"event": event, "hand": hand, "ended_at": time.time()}
    await CanaryStore(shop).end(canary, CanaryState.ROLLED_BACK, "worse", {"n": 1}, **how)
    rejected = {"serves": "t@1 - 0 3", "t@1": "champion", "t@2": "rejected", "round": "regressed"}
    assert await stand(shop) == {**rejected, "canary": "rolled_back"}
    adapter = await AdapterStore(shop).get("t@2")
    assert (adapter.decided_by, adapter.comment, adapter.forced) == ("key_1", "it is rude", False)
    with pytest.raises(Conflict):
        await CanaryStore(shop).end(canary, CanaryState.ROLLED_BACK, "again", {}, **how)


async def test_a_flip_to_another_adapter_ends_the_canary(shop: Database) -> None:
    await begin(shop)
    await TaskStore(shop).flip_champion("t", "", expected_generation=2)
    ended = {"serves": "base - 0 3", "t@1": "retired", "t@2": "candidate", "round": "inconclusive"}
    assert await stand(shop) == {**ended, "canary": "superseded"}


async def test_what_is_forced_is_marked_and_changes_no_round(shop: Database) -> None:
    await begin(shop, hand=Hand("key_1", "I dare", forced=True))
    assert (await AdapterStore(shop).get("t@2")).forced
    hand = Hand("key_2", "and more", forced=True)
    await TaskStore(shop).flip_champion("t", "t@2", expected_generation=2, hand=hand)
    assert (await stand(shop))["round"] == "inconclusive"
    await TaskStore(shop).flip_champion("t", "t@1", expected_generation=3, hand=Hand("key_3", "back"))
    adapter = await AdapterStore(shop).get("t@2")
    assert (adapter.status, adapter.forced, adapter.comment) == (AdapterStatus.RETIRED, True, "and more")


async def test_of_many_who_move_it_at_once_one_wins(shop: Database) -> None:
    canaries = CanaryStore(shop)
    begun = [canaries.begin(replace(CANARY, id=f"cn_{n}"), expected_generation=1, event=EVENT) for n in range(4)]
    results = await asyncio.gather(*begun, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["Conflict"] * 3 + ["Task"]
    canary = await canaries.find_running("t")
    moves = [
        canaries.widen(canary, CanaryStep(0.6, 1.0), {}, event=EVENT),
        canaries.end(canary, CanaryState.ROLLED_BACK, "worse", {}, event=EVENT, ended_at=1.0),
        TaskStore(shop).flip_champion("t", "t@2", expected_generation=2),
        TaskStore(shop).flip_champion("t", "", expected_generation=2),
    ]
    results = await asyncio.gather(*moves, return_exceptions=True)
    assert sum(isinstance(result, Task) for result in results) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 3
    now = await stand(shop)
    running = now["canary"] == "running"
    assert running == (now["t@2"] == "canary") == ("t@2 0.6" in now["serves"])
    assert [now["t@1"], now["t@2"]].count("champion") <= 1


async def test_a_stale_trainer_begins_none(shop: Database) -> None:
    rounds = RoundStore(shop)
    leased = await rounds.lease((await rounds.create("t", {})).id, "w")
    with pytest.raises(Fenced):
        await begin(shop, epoch_of_round=(leased.id, leased.epoch - 1))
    task = await TaskStore(shop).get("t")
    assert (task.canary, task.generation, await CanaryStore(shop).running()) == ("", 1, [])
    await begin(shop, epoch_of_round=(leased.id, leased.epoch))


async def test_a_champion_moved_by_an_old_release_leaves_no_canary(shop: Database) -> None:
    canary = await begin(shop)
    canaries = CanaryStore(shop)
    assert not await canaries.abandon(canary, "it is as it should be", ended_at=1.0)
    await TaskStore(shop).update("t", verify=VerifyMode.OBSERVE)  # moves nothing that serves
    assert not await canaries.abandon(canary, "still so", ended_at=1.0)
    async with shop.write() as connection:  # as the release before does it
        await connection.exec_driver_sql("UPDATE tasks SET champion = '', generation = generation + 1 WHERE name = 't'")
    assert await canaries.abandon(canary, "moved", ended_at=1.0)
    assert (await stand(shop))["serves"] == "base - 0 4"
    assert (await canaries.find_latest("t@2")).state is CanaryState.SUPERSEDED
    assert await canaries.running() == []


async def test_a_candidate_is_rejected_once(shop: Database) -> None:
    canaries = CanaryStore(shop)
    await canaries.reject("t@2", Hand("key_1", "no"))
    now = await stand(shop)
    assert (now["t@2"], now["round"]) == ("rejected", "regressed")
    with pytest.raises(Conflict, match="rejected"):
        await canaries.reject("t@2", Hand("key_1", "no"))
    with pytest.raises(Conflict, match="champion"):
        await canaries.reject("t@1", Hand("key_1", "no"))


@pytest.mark.parametrize("rejected_by", ["a person", "the command line"])
async def test_what_is_rejected_while_it_is_loaded_never_serves(shop: Database, rejected_by: str) -> None:
    adapters = AdapterStore(shop)
    if rejected_by == "a person":
        await CanaryStore(shop).reject("t@2", Hand("key_1", "no"))
    else:
        await adapters.set_status("t@2", AdapterStatus.REJECTED, only_from=(AdapterStatus.CANDIDATE,))
    before = await stand(shop)
    with pytest.raises(Conflict, match="rejected meanwhile"):
        await TaskStore(shop).flip_champion("t", "t@2", expected_generation=1, hand=Hand("key_2", "yes", forced=True))
    with pytest.raises(Conflict, match="rejected meanwhile"):
        await begin(shop)
    assert await stand(shop) == before


async def test_what_serves_is_rejected_by_nobody(shop: Database) -> None:
    await begin(shop)
    for name, says in (("t@1", "champion"), ("t@2", "canary")):
        with pytest.raises(Conflict, match=says):
            await AdapterStore(shop).set_status(name, AdapterStatus.REJECTED, only_from=(AdapterStatus.CANDIDATE,))
    with pytest.raises(NotFound):
        await AdapterStore(shop).set_status("t@9", AdapterStatus.REJECTED, only_from=(AdapterStatus.CANDIDATE,))


async def test_one_that_is_promoted_and_rejected_at_once_ends_as_one_of_the_two(shop: Database) -> None:
    moves = [
        TaskStore(shop).flip_champion("t", "t@2", expected_generation=1),
        CanaryStore(shop).reject("t@2", Hand("key_1", "no")),
    ]
    results = await asyncio.gather(*moves, return_exceptions=True)
    assert [type(result).__name__ for result in results] in (["Task", "Conflict"], ["Conflict", "NoneType"])
    now = await stand(shop)
    assert (now["serves"][:3], now["t@2"]) in (("t@2", "champion"), ("t@1", "rejected"))


@pytest.mark.parametrize("came_to", ["champion", "canary", "rolled back", "nothing"])
async def test_a_lost_rounds_adapter_says_how_it_ends(database: Database, came_to: str) -> None:
    tasks, rounds = TaskStore(database), RoundStore(database)
    await tasks.create(Task("t"))
    leased = await rounds.lease((await rounds.create("t", {})).id, "w")
    await AdapterStore(database).add(Adapter("t@2", "t", "/2", {}, round_id=leased.id))
    await rounds.update(leased.id, leased.epoch, adapter="t@2")
    await rounds.request_cancel(leased.id)
    if came_to == "champion":
        await tasks.flip_champion("t", "t@2", expected_generation=0)
    elif came_to != "nothing":
        await CanaryStore(database).begin(replace(CANARY, champion=""), expected_generation=0, event=EVENT)
    if came_to == "rolled back":
        canary = await CanaryStore(database).find_running("t")
        await CanaryStore(database).end(canary, CanaryState.ROLLED_BACK, "worse", {}, event=EVENT, ended_at=1.0)
    await asyncio.sleep(0.03)
    (row,) = await rounds.reap(lost_after_s=0.02)
    ends = {
        "champion": RoundState.PROMOTED,
        "canary": RoundState.INCONCLUSIVE,
        "rolled back": RoundState.REGRESSED,
        "nothing": RoundState.CANCELLED,
    }
    assert (row.state, row.ended_at > 0) == (ends[came_to], True)
    assert row.reason.endswith("lost its worker w, lease 1")
    assert ("before this" in row.reason) is (came_to != "nothing")


def make_episode(
    adapter: str, outcome: Outcome, *, at: float, text: str, ms: float = 10.0, model: str = "t"
) -> Episode:
    request = {"messages": [{"role": "user", "content": text}]}
    stamp = new_id("ep")
    id_ = f"ep_{int(at * 1000):012x}{stamp[15:]}"  # made at that time
    return Episode(
        id_, "t", model, "base", adapter, "key", request, (), VerifyMode.ENFORCE, RetryPolicy(),
        outcome=outcome, created_at=at, duration_ms=ms, split="training",
        conversation=f"of {text}",
    )  # fmt: skip


async def test_cells_count_each_conversation_once_by_step_hour_and_adapter(shop: Database, tmp_path) -> None:
    start = 1_800_000_000.0
    log = EpisodeLog(shop, LogSettings(), tmp_path)
    await log.start()
    ours, theirs = "t@2", "t@1"
    told = [
        (theirs, Outcome.EXHAUSTED, start - 9, "before"),
        (ours, Outcome.PASSED, start + 1, "a"),
        (ours, Outcome.RECOVERED, start + 2, "b"),
        (ours, Outcome.EXHAUSTED, start + 3, "c"),
        (theirs, Outcome.PASSED, start + 4, "c"),  # the same conversation, later: not counted
        (theirs, Outcome.EXHAUSTED, start + 5, "d"),
        (theirs, Outcome.UNVERIFIED, start + 6, "e"),
        (theirs, Outcome.ERRORED, start + 7, "f"),
        (theirs, Outcome.CANCELLED, start + 8, "g"),
        (ours, Outcome.PASSED, start + 7300, "h"),  # in the second step
        ("t@9", Outcome.PASSED, start + 9, "i"),  # neither of the two
    ]
    for adapter, outcome, at, text in told:
        await log.record(make_episode(adapter, outcome, at=at, text=text))
    pinned = make_episode(ours, Outcome.PASSED, at=start + 10, text="j", model="t@2")
    pinned.conversation = ""
    await log.record(pinned)
    await log.record(make_episode(ours, Outcome.PASSED, at=start + 11, text="k", ms=99.0))
    hidden = replace_store(make_episode(ours, Outcome.PASSED, at=start + 12, text="l"))
    await log.record(hidden)
    await log.record(replace(hidden, id=hidden.id[:-1] + "x"))  # no content: each is one by itself
    await log.stop()
    steps = (CanaryStep(0.2, start), CanaryStep(0.6, start + 7200))
    canary = replace(CANARY, started_at=start, steps=steps)
    cells = await CanaryFigures(shop).read_cells(canary, 50.0)
    found = {(one.step, one.canary): one for one in cells}
    assert {key: (one.episodes, one.passed, one.failed, one.broken, one.slow) for key, one in found.items()} == {
        (0, True): (6, 5, 1, 0, 1),
        (0, False): (4, 0, 1, 2, 0),
        (1, True): (1, 1, 0, 0, 0),
    }
    before = await CanaryFigures(shop).read_before("t", theirs)
    assert before == {"episodes": 6, "broken": 2, "passed": 1, "failed": 2}


def replace_store(episode: Episode) -> Episode:
    episode.store = False
    return episode


async def test_the_usual_latency_is_known_from_twenty_episodes_on(shop: Database, tmp_path) -> None:
    log = EpisodeLog(shop, LogSettings(), tmp_path)
    await log.start()
    for number in range(20):
        await log.record(make_episode("t@1", Outcome.PASSED, at=1e9 + number, text=f"{number}", ms=number + 1.0))
    await log.stop()
    assert (await CanaryFigures(shop).read_before("t", "t@1"))["p95_ms"] == 19.0
