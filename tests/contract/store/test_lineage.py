"""What rounds record of the episodes that they train on, and what can be followed from there, on both dialects."""

import asyncio

import pytest

from server.domain import Adapter, Outcome, Round, RoundState
from server.errors import Fenced, NotFound
from server.store import lineage as module
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.lineage import LineageStore, Served
from server.store.rounds import RoundStore
from tests.fixtures.episodes import make_episode


@pytest.fixture
def lineage(database: Database) -> LineageStore:
    return LineageStore(database)


async def lease(database: Database, task: str = "sql") -> Round:
    rounds = RoundStore(database)
    leased = await rounds.lease((await rounds.create(task, {})).id, "w1")
    assert leased is not None
    return leased


async def train(database: Database, name: str, *used: str, parent: str = "") -> Round:
    """Run a round that samples on `used`, begins with `parent` while the base serves, and leaves an adapter."""
    row = await lease(database)
    held = (row.id, row.epoch)
    await LineageStore(database).record(held, 1, used)
    made = Adapter(name, "sql", "/", {"a.safetensors": "ab12"}, round_id=row.id, parent="", verifiers=("v@1",))
    await AdapterStore(database).add(made, epoch_of_round=held)
    return await RoundStore(database).finish(*held, RoundState.INCONCLUSIVE, "too close", adapter=name, parent=parent)


async def list_used(lineage: LineageStore, row: Round) -> tuple[str, ...]:
    return (await lineage.trace(row.id)).rounds[0].episodes


async def test_each_episode_is_recorded_once_with_its_first_step(
    database: Database, lineage: LineageStore, log
) -> None:
    episode = make_episode()
    await log.record(episode)
    row = await lease(database)
    for step, used in ((3, ["ep_b", episode.id, "ep_b"]), (4, [episode.id, "ep_c"]), (5, [])):
        await lineage.record((row.id, row.epoch), step, used)
    assert sorted(await list_used(lineage, row)) == sorted(["ep_b", "ep_c", episode.id])
    (found,) = (await lineage.trace(episode.id)).rounds
    assert (found.round.id, found.step, found.count) == (row.id, 3, 3)


async def test_what_a_lost_lease_recorded_is_forgotten_and_it_records_no_more(
    database: Database, lineage: LineageStore
) -> None:
    row = await lease(database)
    await lineage.record((row.id, row.epoch), 1, ["ep_lost", "ep_both"])
    await asyncio.sleep(0.02)
    await RoundStore(database).reap(lost_after_s=0.0)
    again = await RoundStore(database).lease(row.id, "w2")
    assert again is not None
    assert await list_used(lineage, row) == ("ep_both", "ep_lost")  # until the new lease has sampled
    await lineage.record((row.id, again.epoch), 1, ["ep_both", "ep_new"])
    assert await list_used(lineage, row) == ("ep_both", "ep_new")
    with pytest.raises(Fenced):
        await lineage.record((row.id, row.epoch), 2, ["ep_late"])
    assert await list_used(lineage, row) == ("ep_both", "ep_new")


async def test_an_episode_leads_to_its_rounds_and_their_adapters_to_what_they_served(
    database: Database, lineage: LineageStore, log: EpisodeLog
) -> None:
    asked = make_episode(adapter="sql@1", created_at=10.0)
    first = await train(database, "sql@1", "ep_other")
    second = await train(database, "sql@2", "ep_other", asked.id, parent="sql@1")
    third = await train(database, "sql@3", asked.id, parent="sql@2")
    served = [make_episode(Outcome.PASSED, adapter="sql@2", created_at=float(at)) for at in (20, 30, 40)]
    for episode in (asked, *served):
        await log.record(episode)

    trace = await lineage.trace(asked.id)
    assert (trace.kind, trace.episode) == ("episode", asked)
    assert trace.adapter is not None
    assert (trace.adapter.adapter.name, trace.adapter.descendants) == ("sql@1", ("sql@2", "sql@3"))
    assert trace.adapter.served == Served(1, asked.id, 10.0, asked.id, 10.0)
    assert [(one.round.id, one.count, one.step) for one in trace.rounds] == [(second.id, 2, 1), (third.id, 1, 1)]
    made = trace.rounds[0].adapter
    assert made is not None
    assert (made.adapter.name, made.adapter.files, made.adapter.verifiers) == (
        "sql@2", {"a.safetensors": "ab12"}, ("v@1",),
    )  # fmt: skip
    assert (made.ancestors, made.descendants) == (("sql@1",), ("sql@3",))
    assert made.served == Served(3, served[0].id, 20.0, served[2].id, 40.0)

    trace = await lineage.trace("sql@3")
    assert (trace.kind, [one.round.id for one in trace.rounds]) == ("adapter", [third.id])
    assert trace.adapter is not None
    assert (trace.adapter.ancestors, trace.adapter.served) == (("sql@2", "sql@1"), Served())
    assert (await lineage.trace(first.id)).rounds[0].episodes == ("ep_other",)


async def test_an_episode_that_nothing_used_and_one_that_the_log_lost(
    database: Database, lineage: LineageStore, log: EpisodeLog
) -> None:
    unused = make_episode(adapter="")
    await log.record(unused)
    trace = await lineage.trace(unused.id)
    assert (trace.adapter, trace.rounds) == (None, ())
    row = await train(database, "sql@1", "ep_gone")
    assert (await lineage.trace(row.id)).rounds[0].episodes == ("ep_gone",)
    for unknown in ("ep_gone", "sql@9", "rd_none", ""):
        with pytest.raises(NotFound, match="no episode, round or adapter"):
            await lineage.trace(unknown)


async def test_of_many_episodes_the_first_are_listed_and_all_are_counted(
    database: Database, lineage: LineageStore, monkeypatch
) -> None:
    monkeypatch.setattr(module, "MOST_LISTED", 2)
    row = await train(database, "sql@1", "ep_3", "ep_1", "ep_2")
    (found,) = (await lineage.trace(row.id)).rounds
    assert (found.count, found.episodes) == (3, ("ep_1", "ep_2"))
