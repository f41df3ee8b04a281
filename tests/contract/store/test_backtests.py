"""The backtests, on both dialects."""

import asyncio

import pytest
from sqlalchemy import update

from server.domain import Backtest, BacktestState
from server.errors import Conflict, NotFound, TooManyRequests
from server.store.backtests import BacktestStore
from server.store.clock import UnixNow
from server.store.database import Database
from server.store.keys import KeyStore
from server.store.tables import backtests

LOST_AFTER_S = 60.0


async def silence(database: Database) -> None:
    """Make all heartbeats old, as if their processes had been lost."""
    async with database.write() as connection:
        await connection.execute(update(backtests).values(heartbeat_at=UnixNow() - 2 * LOST_AFTER_S))


async def take(store: BacktestStore, process: str = "api_1"):
    return await store.take(process, lost_after_s=LOST_AFTER_S)


async def test_a_backtest_comes_back_as_it_was_made(database: Database) -> None:
    store = BacktestStore(database)
    made = await store.create("sql", 2, "key_1", {"task": "sql", "sample": 5})
    assert (made.verifier, made.version, made.key, made.state) == ("sql", 2, "key_1", BacktestState.RUNNING)
    assert made.id.startswith("bt_")
    assert made.created_at > 0
    assert await store.get(made.id) == made
    assert made.options == {"task": "sql", "sample": 5}
    assert await store.get("bt_none") is None


async def test_a_key_has_so_many_under_way_and_no_more_however_many_it_asks_for_at_once(database: Database) -> None:
    store = BacktestStore(database)
    _, key = await KeyStore(database).create("k")
    asking = (store.create("sql", 1, key.id, {}, most_open=2) for _ in range(8))
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    made = [one for one in outcomes if isinstance(one, Backtest)]
    assert (len(made), len(await store.list())) == (2, 2)
    assert {type(one) for one in outcomes} == {Backtest, TooManyRequests}
    await store.cancel(made[0].id)
    assert (await store.create("sql", 1, key.id, {}, most_open=2)).state is BacktestState.RUNNING
    await store.create("sql", 1, "another", {}, most_open=2)


async def test_they_are_listed_newest_first_in_pages(database: Database) -> None:
    store = BacktestStore(database)
    made = [await store.create(name, 1, key, {}) for name, key in (("a", "k"), ("b", "k"), ("a", "l"))]
    ids = sorted((one.id for one in made), reverse=True)
    assert [one.id for one in await store.list()] == ids
    assert [one.id for one in await store.list(limit=1, before=ids[0])] == [ids[1]]
    assert {one.id for one in await store.list(verifier="a")} == {made[0].id, made[2].id}
    assert {one.id for one in await store.list(verifier="a", key="l")} == {made[2].id}


async def test_of_many_processes_one_takes_it(database: Database) -> None:
    store = BacktestStore(database)
    made = await store.create("sql", 1, "", {})
    taken = [one for one in await asyncio.gather(*(take(store, f"api_{n}") for n in range(6))) if one]
    assert [one.id for one in taken] == [made.id]
    assert await take(store) is None


async def test_the_owner_writes_how_far_it_is_and_how_it_ended(database: Database) -> None:
    store = BacktestStore(database)
    await store.create("sql", 1, "", {})
    taken = await take(store)
    assert taken is not None
    assert await store.progress(taken, 3, 10)
    found = await store.get(taken.id)
    assert found is not None
    assert (found.done, found.total) == (3, 10)
    assert await store.finish(taken, {"n": 10, "sampled": 10, "odd": "\0"})
    ended = await store.get(taken.id)
    assert ended is not None
    assert (ended.state, ended.report["n"], ended.done, ended.total) == (BacktestState.DONE, 10, 10, 10)
    assert ended.ended_at > 0
    assert not await store.progress(taken, 1, 1)


async def test_a_silent_owner_loses_it_and_writes_no_more(database: Database) -> None:
    store = BacktestStore(database)
    await store.create("sql", 1, "", {})
    first = await take(store)
    assert first is not None
    assert await store.progress(first, 5, 10)
    await silence(database)
    second = await take(store)  # the same process, started again or only slow: another lease all the same
    assert second is not None
    assert (second.id, second.done, second.total) == (first.id, 0, 0)
    assert second.owner != first.owner
    assert not await store.progress(first, 6, 10)
    assert not await store.finish(first, {})
    assert not await store.fail(first, "no")
    assert not await store.release(first)
    assert await store.progress(second, 1, 10)


async def test_the_second_loss_is_the_end(database: Database) -> None:
    store = BacktestStore(database)
    made = await store.create("sql", 1, "", {})
    for _ in range(2):
        assert await take(store) is not None
        await silence(database)
    assert await take(store) is None
    found = await store.get(made.id)
    assert found is not None
    assert found.state is BacktestState.FAILED
    assert "api_1" in found.error


async def test_one_that_is_put_back_has_lost_nothing(database: Database) -> None:
    store = BacktestStore(database)
    await store.create("sql", 1, "", {})
    for _ in range(4):
        taken = await take(store)
        assert taken is not None
        assert await store.release(taken)


async def test_a_cancelled_one_is_nobodys_any_more(database: Database) -> None:
    store = BacktestStore(database)
    made = await store.create("sql", 1, "", {})
    taken = await take(store)
    assert taken is not None
    cancelled = await store.cancel(made.id)
    assert cancelled.state is BacktestState.CANCELLED
    assert not await store.progress(taken, 1, 2)
    assert await store.cancel(made.id) == cancelled
    with pytest.raises(NotFound):
        await store.cancel("bt_none")
    await store.create("sql", 1, "", {})
    done = await take(store)
    assert done is not None
    await store.finish(done, {})
    with pytest.raises(Conflict):
        await store.cancel(done.id)


async def test_what_waits_longest_is_taken_first(database: Database) -> None:
    store = BacktestStore(database)
    made = [await store.create("sql", 1, "", {}) for _ in range(3)]
    taken = [await take(store) for _ in range(3)]
    assert [one.id for one in taken if one] == sorted(one.id for one in made)
