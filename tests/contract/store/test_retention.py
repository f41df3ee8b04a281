"""What ages out of the log and what stays, on both dialects."""

import asyncio

import pytest
from sqlalchemy import select

from server.domain import Feedback, Outcome, Task
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.episodes import EpisodeStore
from server.store.feedback import FeedbackStore
from server.store.partitions import Month, border_id
from server.store.retention import DAY_S, RetentionStore
from server.store.rows import fetch_rows
from server.store.tables import attempts, reflections
from server.store.tasks import TaskStore
from tests.fixtures.episodes import make_episode

NOW = Month.of(1_790_000_000).begins_at + 14.5 * DAY_S  # in the middle of a month


def made(days_ago: float, number: int = 0, **changes):
    """An episode made so many days before NOW."""
    return make_episode(id=f"{border_id(NOW - days_ago * DAY_S)}{number:016x}", **changes)


async def list_ids(database: Database) -> list[str]:
    return [episode.id async for episode in EpisodeStore(database).iterate()]


async def count_parts(database: Database) -> int:
    async with database.read() as connection:
        rows = [await fetch_rows(connection, select(table.c.episode_id)) for table in (attempts, reflections)]
    return sum(map(len, rows))


async def test_what_is_past_the_limit_goes_with_all_that_belongs_to_it(database: Database, log: EpisodeLog) -> None:
    old = [made(31, number) for number in range(450)]  # more than two batches
    young = [made(29.9, number) for number in range(3)]
    await asyncio.gather(*(log.record(episode) for episode in [*old, *young]))
    for episode in (old[7], young[1]):
        await FeedbackStore(database).give(
            Feedback(episode.id, "support", "k", passed=True, score=None, comment="", trains=False)
        )
    store = RetentionStore(database, 30, 0)
    would = await store.plan(NOW, exact=True)
    assert would.month_episodes + would.episodes == 450
    assert len(await list_ids(database)) == 453
    said = []
    done = await store.prune(NOW, exact=True, tell=said.append)
    assert (done.month_episodes + done.episodes, done.feedback, done.kept, done.more) == (450, 1, 0, False)
    assert said[-1] == done
    assert await list_ids(database) == [episode.id for episode in young]
    assert await count_parts(database) == sum(len(one.attempts) + len(one.reflections) for one in young)
    assert [one.episode_id for one in await FeedbackStore(database).list()] == [young[1].id]
    again = await store.prune(NOW, exact=True)
    assert again.month_episodes + again.episodes + again.feedback == 0


async def test_for_ever_is_for_ever(database: Database, log: EpisodeLog) -> None:
    await log.record(made(20_000))
    store = RetentionStore(database, 0, 0)
    assert (await store.prune(NOW)).episodes == (await store.plan(NOW)).episodes == 0
    status = await store.read_status(NOW)
    assert (status.rows, status.next_at, status.next_what, status.past_limit) == (1, 0.0, "", 0)
    assert len(await list_ids(database)) == 1


async def test_the_newest_held_out_problems_of_each_task_stay(database: Database, log: EpisodeLog) -> None:
    tasks = TaskStore(database)
    for name in ("a", "b"):
        await tasks.create(Task(name))
    held_out = {"split": "held_out", "outcome": Outcome.PASSED}
    old = [made(60 + age, age, task="a", question=f"a{age}", **held_out) for age in range(6)]  # newest first
    other = made(80, 1, task="b", question="b", **held_out)
    again = made(90, 2, task="b", question="b", **held_out)  # the same problem, asked before
    training = made(60, 9, task="a", question="t")
    young = made(1, 1, task="a", question="new", **held_out)
    for episode in [*old, other, again, training, young]:
        await log.record(episode)
    store = RetentionStore(database, 30, 3)
    kept = {young.id, old[0].id, old[1].id, other.id}  # three of "a", one of which is young
    would = await store.plan(NOW, exact=True)
    assert (would.kept, would.month_episodes + would.episodes) == (3, 6)
    done = await store.prune(NOW, exact=True)
    assert (done.kept, set(await list_ids(database))) == (3, kept)
    found = await EpisodeStore(database).get(old[0].id)
    assert found == old[0]
    # Once there are newer ones, the old ones go as well.
    for number in range(2):
        await log.record(made(0.5, number, task="a", question=f"newer{number}", **held_out))
    await store.prune(NOW, exact=True)
    assert old[0].id not in await list_ids(database)
    assert other.id in await list_ids(database)


async def test_what_comes_home_late_goes_too(database: Database, log: EpisodeLog) -> None:
    """A spooled episode may be older than what was pruned meanwhile."""
    store = RetentionStore(database, 30, 0)
    await log.record(made(100))
    await store.prune(NOW, exact=True)
    await log.record(made(100, 2))
    assert len(await list_ids(database)) == 1
    done = await store.prune(NOW, exact=True)
    assert done.episodes == 1
    assert await list_ids(database) == []


async def test_it_stops_when_its_time_is_up_and_goes_on_later(database: Database, log: EpisodeLog) -> None:
    await asyncio.gather(*(log.record(made(31, number)) for number in range(300)))
    store = RetentionStore(database, 30, 0)
    assert (await store.prune(NOW, exact=True, within_s=-1.0)).more
    assert not (await store.prune(NOW, exact=True, within_s=60.0)).more
    assert await list_ids(database) == []


async def test_the_status_says_what_there_is_and_what_goes_next(database: Database, log: EpisodeLog) -> None:
    empty = await RetentionStore(database, 30, 0).read_status(NOW)
    assert (empty.rows, empty.oldest, empty.next_what) == (0, "", "")
    first, second = made(10, 1), made(3, 1)
    for episode in (first, second):
        await log.record(episode)
    status = await RetentionStore(database, 30, 0).read_status(NOW)
    assert (status.rows, status.oldest, status.past_limit) == (2, first.id, 0)
    assert status.bytes > 10_000
    assert status.oldest_at == pytest.approx(NOW - 10 * DAY_S, abs=0.01)
    assert status.next_at >= NOW + 19.9 * DAY_S
    assert (await RetentionStore(database, 5, 0).read_status(NOW)).past_limit == 1
