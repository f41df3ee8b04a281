"""The task store, on both dialects."""

import asyncio

import pytest

from server.domain import RetryPolicy, Task, TaskVerifier, TrainingPolicy, VerifyMode
from server.errors import Conflict, NotFound
from server.store.database import Database
from server.store.tasks import TaskStore

SQL = Task(
    name="sql",
    verifiers=(TaskVerifier("sql", 1, {"dialect": "ansi"}, {"answer": "text"}),),
    verify=VerifyMode.OBSERVE,
    retry=RetryPolicy(max_retries=2, max_seconds=3.5, show="reason"),
    training=TrainingPolicy(train_on_new_failures=50, options={"learning_rate": 1e-4, "steps": 7}),
    prompts={"reflect": "Think.", "retry": "Again."},
    unknown_fields="ignore",
    created_at=1700000000.125,
)


@pytest.fixture
def tasks(database: Database) -> TaskStore:
    return TaskStore(database)


async def test_a_task_comes_back_as_it_was_made(tasks: TaskStore) -> None:
    await tasks.create(SQL)
    assert await tasks.get("sql") == SQL
    assert await tasks.get("other") is None


async def test_the_time_of_making_is_filled_in(tasks: TaskStore) -> None:
    made = await tasks.create(Task("fresh"))
    assert made.created_at > 1.7e9
    assert await tasks.get("fresh") == made


async def test_a_name_is_given_once(tasks: TaskStore) -> None:
    await tasks.create(SQL)
    with pytest.raises(Conflict):
        await tasks.create(Task("sql"))
    assert await tasks.get("sql") == SQL


async def test_tasks_are_listed_by_name(tasks: TaskStore) -> None:
    for name in ("b", "a", "B"):
        await tasks.create(Task(name))
    assert [task.name for task in await tasks.list()] == ["B", "a", "b"]


async def test_update_changes_only_what_is_named(tasks: TaskStore) -> None:
    await tasks.create(SQL)
    changed = await tasks.update("sql", verify=VerifyMode.ENFORCE, verifiers=[TaskVerifier("sql", 2)])
    assert (changed.verify, changed.verifiers) == (VerifyMode.ENFORCE, (TaskVerifier("sql", 2),))
    assert (changed.retry, changed.training, changed.prompts) == (SQL.retry, SQL.training, SQL.prompts)
    assert await tasks.get("sql") == changed
    assert await tasks.update("sql") == changed


async def test_update_of_a_missing_task(tasks: TaskStore) -> None:
    with pytest.raises(NotFound):
        await tasks.update("nobody", verify=VerifyMode.OFF)


async def test_update_never_moves_the_champion(tasks: TaskStore) -> None:
    await tasks.create(SQL)
    with pytest.raises(TypeError, match="champion"):
        await tasks.update("sql", champion="sql@1")


async def test_a_flip_grows_the_generation(tasks: TaskStore) -> None:
    await tasks.create(SQL)
    flipped = await tasks.flip_champion("sql", "sql@1", expected_generation=0)
    assert (flipped.champion, flipped.generation) == ("sql@1", 1)
    with pytest.raises(Conflict):
        await tasks.flip_champion("sql", "sql@2", expected_generation=0)
    with pytest.raises(NotFound):
        await tasks.flip_champion("nobody", "x", expected_generation=0)
    assert await tasks.get("sql") == flipped


async def test_of_flips_at_once_exactly_one_wins(tasks: TaskStore) -> None:
    await tasks.create(SQL)
    flips = [tasks.flip_champion("sql", f"sql@{n}", expected_generation=0) for n in range(6)]
    results = await asyncio.gather(*flips, return_exceptions=True)
    won = [result for result in results if isinstance(result, Task)]
    assert len(won) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 5
    assert await tasks.get("sql") == won[0]


async def test_text_that_a_database_cannot_hold_is_made_visible(tasks: TaskStore) -> None:
    made = await tasks.create(Task("odd", prompts={"reflect": "nul \0 and \ud800"}))
    assert made.name == "odd"
    found = await tasks.get("odd")
    assert found is not None
    assert found.prompts == {"reflect": "nul \u2400 and \ufffd"}
