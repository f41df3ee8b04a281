"""Recorded answers: one suite for the store on both dialects and for the one in memory that unit tests use."""

import asyncio

import pytest
from sqlalchemy import func, select

from server.store.database import Database
from server.store.replays import Claim, RecordedAnswer, ReplayStore
from server.store.tables import replays
from tests.fixtures.databases import DIALECTS
from tests.fixtures.replays import MemoryReplays

CLAIM = Claim("key_1", "order-7", "abc", "one")
OTHER = Claim("key_1", "order-7", "abc", "two")
ANSWER = RecordedAnswer(200, [("content-type", "application/json"), ("x-mulligan-outcome", "passed")], b"{\x00\xff}")
LONG_S, OVER_S = 60.0, -1.0
"""A lease that outlives the test, and one that is over at once."""


@pytest.fixture(params=["memory", *DIALECTS])
async def store(request):
    if request.param == "memory":
        yield MemoryReplays()
        return
    database = Database(request.getfixturevalue(f"{request.param}_url"))
    yield ReplayStore(database)
    await database.close()


async def test_a_key_is_claimed_once(store):
    assert await store.claim(CLAIM, LONG_S) is None
    found = await store.claim(OTHER, LONG_S)
    assert (found.request_sha256, found.answer) == ("abc", None)
    assert 0 <= found.age_s < 30


async def test_an_answer_comes_back_as_it_was_recorded(store):
    await store.claim(CLAIM, LONG_S)
    assert await store.record(CLAIM, ANSWER, LONG_S)
    found = await store.claim(Claim("key_1", "order-7", "another request", "two"), LONG_S)
    assert (found.request_sha256, found.answer) == ("abc", ANSWER)


async def test_another_api_key_or_name_is_another_claim(store):
    await store.claim(CLAIM, LONG_S)
    await store.record(CLAIM, ANSWER, LONG_S)
    assert await store.claim(Claim("key_2", "order-7", "abc", "two"), LONG_S) is None
    assert await store.claim(Claim("key_1", "order-8", "abc", "three"), LONG_S) is None


async def test_what_was_released_can_be_claimed_again(store):
    await store.claim(CLAIM, LONG_S)
    await store.release(CLAIM)
    assert await store.claim(OTHER, LONG_S) is None


async def test_only_who_holds_a_claim_can_end_it(store):
    await store.claim(CLAIM, LONG_S)
    await store.release(OTHER)
    assert not await store.record(OTHER, ANSWER, LONG_S)
    assert (await store.claim(OTHER, LONG_S)).answer is None
    assert await store.record(CLAIM, ANSWER, LONG_S)


async def test_an_answer_is_not_released_nor_written_twice(store):
    await store.claim(CLAIM, LONG_S)
    await store.record(CLAIM, ANSWER, LONG_S)
    await store.release(CLAIM)
    assert not await store.record(CLAIM, RecordedAnswer(200, [], b"other"), LONG_S)
    assert (await store.claim(OTHER, LONG_S)).answer == ANSWER


async def test_the_claim_of_a_process_that_died_expires_and_is_lost_to_it(store):
    await store.claim(CLAIM, OVER_S)
    assert await store.claim(OTHER, LONG_S) is None
    assert not await store.record(CLAIM, ANSWER, LONG_S)
    await store.renew([CLAIM], OVER_S)  # too late
    assert await store.record(OTHER, ANSWER, LONG_S)


async def test_a_claim_is_renewed_while_its_process_lives(store):
    await store.claim(CLAIM, OVER_S)
    await store.renew([CLAIM, OTHER], LONG_S)
    assert (await store.claim(OTHER, LONG_S)).answer is None


async def test_an_answer_expires_and_is_swept(store):
    await store.claim(CLAIM, LONG_S)
    await store.record(CLAIM, ANSWER, OVER_S)
    kept = Claim("key_1", "kept", "abc", "three")
    await store.claim(kept, LONG_S)
    assert await store.sweep() == 1
    assert await store.sweep() == 0
    assert await store.claim(OTHER, LONG_S) is None
    assert await store.record(kept, ANSWER, LONG_S)


async def test_an_expired_answer_gives_its_key_free_before_it_is_swept(store):
    await store.claim(CLAIM, LONG_S)
    await store.record(CLAIM, ANSWER, OVER_S)
    assert await store.claim(OTHER, LONG_S) is None
    assert (await store.claim(CLAIM, LONG_S)).answer is None


async def test_of_many_at_once_one_gets_it(store):
    claims = [Claim("key_1", "order-7", "abc", f"owner {number}") for number in range(12)]
    found = await asyncio.gather(*(store.claim(claim, LONG_S) for claim in claims))
    assert found.count(None) == 1


async def test_processes_agree(database_url):
    """Two processes' stores on one database: what one claims and records, the other finds."""
    first, second = Database(database_url), Database(database_url)
    try:
        claims = [Claim("key_1", f"order-{number % 5}", "abc", f"owner {number}") for number in range(40)]
        stores = [ReplayStore(first), ReplayStore(second)]
        found = await asyncio.gather(*(stores[n % 2].claim(claim, LONG_S) for n, claim in enumerate(claims)))
        winners = [claim for claim, one in zip(claims, found, strict=True) if one is None]
        assert sorted(claim.name for claim in winners) == [f"order-{number}" for number in range(5)]
        await asyncio.gather(*(stores[n % 2].record(claim, ANSWER, LONG_S) for n, claim in enumerate(winners)))
        repeated = await asyncio.gather(*(stores[n % 2].claim(claim, LONG_S) for n, claim in enumerate(claims)))
        assert {one.answer.body for one in repeated} == {ANSWER.body}
        async with first.read() as connection:
            assert await connection.scalar(select(func.count()).select_from(replays)) == 5
    finally:
        await first.close()
        await second.close()
