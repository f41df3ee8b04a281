"""The limits of keys over several processes on one database, on both dialects."""

import asyncio
import time

import pytest

from server.api.limits import KeyLimiter
from server.domain import ApiKey, KeyLimits
from server.errors import InsufficientQuota, TooManyRequests
from server.store import key_limits
from server.store.database import Database
from server.store.key_limits import Claim, KeyLimitStore
from tests.fixtures.databases import run_apart


def limited(key_id: str = "key_1", **limits) -> ApiKey:
    return ApiKey(key_id, "app", "", limits=KeyLimits(**limits))


async def try_admit(limiter: KeyLimiter, key: ApiKey):
    try:
        return await limiter.admit(key)
    except (TooManyRequests, InsufficientQuota) as error:
        return error


class Workers:
    """Several limiters, each on connections of its own to one database, as processes are."""

    def __init__(self, url: str, count: int) -> None:
        self.databases = [Database(url) for _ in range(count)]
        self.limiters = [KeyLimiter(KeyLimitStore(one), f"api-{place}") for place, one in enumerate(self.databases)]
        self.loops: list[asyncio.Task] = []

    async def __aenter__(self) -> list[KeyLimiter]:
        self.loops = [asyncio.create_task(limiter.run()) for limiter in self.limiters]
        return self.limiters

    async def __aexit__(self, *_: object) -> None:
        for loop in self.loops:
            loop.cancel()
        await asyncio.wait(self.loops)
        for limiter, database in zip(self.limiters, self.databases, strict=True):
            await limiter.stop()
            await database.close()


async def test_two_processes_let_in_exactly_as_many_requests_as_the_limit(database_url: str) -> None:
    key = limited(requests_per_minute=200)
    async with Workers(database_url, 2) as limiters:
        started = time.monotonic()
        admitted = 0
        while admitted < 200 and time.monotonic() - started < 40:
            answers = await asyncio.gather(*(try_admit(limiter, key) for limiter in limiters for _ in range(60)))
            admitted += sum(not isinstance(answer, Exception) for answer in answers)
        more = await asyncio.gather(*(try_admit(limiter, key) for limiter in limiters for _ in range(20)))
        assert time.monotonic() - started < 55, "too slow a machine for this test to mean anything"
    assert admitted == 200
    assert {type(answer) for answer in more} == {TooManyRequests}
    refusal = more[0]
    assert isinstance(refusal, TooManyRequests)
    assert (refusal.code, refusal.param) == ("rate_limit_exceeded", None)
    assert refusal.retry_after_s is not None
    assert 1 <= refusal.retry_after_s <= 61
    assert refusal.headers["x-ratelimit-remaining-requests"] == "0"


async def test_keys_do_not_count_for_each_other(database_url: str) -> None:
    async with Workers(database_url, 1) as (limiter,):
        for name in ("key_1", "key_2"):
            key = limited(name, requests_per_minute=2)
            answers = [await try_admit(limiter, key) for _ in range(3)]
            assert [isinstance(answer, Exception) for answer in answers] == [False, False, True]


async def test_no_more_run_at_the_same_time_than_may_over_two_processes(database_url: str) -> None:
    key = limited(max_concurrent=3)
    running = most = served = 0

    async def work(limiter: KeyLimiter) -> None:
        nonlocal running, most, served
        for _ in range(6):
            admission = await try_admit(limiter, key)
            if isinstance(admission, Exception):
                continue
            running += 1
            most, served = max(most, running), served + 1
            await asyncio.sleep(0.01)
            running -= 1
            admission.finish(0)

    async with Workers(database_url, 2) as limiters:
        await asyncio.gather(*(work(limiter) for limiter in limiters for _ in range(3)))
    assert most == 3
    assert served >= 12


async def test_a_slot_that_one_process_no_longer_needs_serves_the_other(database_url: str) -> None:
    key = limited(max_concurrent=1)
    async with Workers(database_url, 2) as (one, other):
        for _ in range(5):  # a client whose requests reach the processes in turn is never refused
            for limiter in (one, other):
                (await limiter.admit(key)).finish(0)


async def test_all_slots_taken_is_refused_after_a_short_wait(database_url: str) -> None:
    key = limited(max_concurrent=1)
    async with Workers(database_url, 2) as (one, other):
        admission = await one.admit(key)
        refused = await try_admit(other, key)
        assert isinstance(refused, TooManyRequests)
        assert refused.retry_after_s == 1
        admission.finish(0)
        admission.finish(0)  # twice is once
        (await other.admit(key)).finish(0)


async def test_the_slots_of_a_dead_process_come_free(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_limits, "SLOT_LEASE_S", 1.5)
    key = limited(max_concurrent=2)

    async def die() -> None:
        database = Database(database_url)
        limiter = KeyLimiter(KeyLimitStore(database), "api-dead")
        for _ in range(2):
            await limiter.admit(key)  # never finished: its process is gone, and nobody says so
        await database.close()

    await asyncio.to_thread(run_apart, die)
    async with Workers(database_url, 1) as (limiter,):
        assert isinstance(await try_admit(limiter, key), TooManyRequests)
        await asyncio.sleep(1.5)
        admissions = [await limiter.admit(key) for _ in range(2)]
        await asyncio.sleep(2.5)  # a heartbeat keeps them
        assert isinstance(await try_admit(limiter, key), TooManyRequests)
        for admission in admissions:
            admission.finish(0)


async def test_tokens_are_shared_within_moments_and_refused_past_the_limit(database_url: str) -> None:
    key = limited(tokens_per_minute=100)
    async with Workers(database_url, 2) as (one, other):
        (await one.admit(key)).finish(60)
        (await other.admit(key)).finish(60)
        await asyncio.sleep(1.0)
        for limiter in (one, other):
            refused = await try_admit(limiter, key)
            assert isinstance(refused, TooManyRequests)
            assert "100 tokens a minute" in str(refused)
            assert refused.headers["x-ratelimit-remaining-tokens"] == "0"


async def test_a_budget_is_shared_survives_a_stop_and_has_its_own_code(database_url: str) -> None:
    key = limited(token_budget=100)
    async with Workers(database_url, 2) as (one, other):
        (await one.admit(key)).finish(60)
        (await other.admit(key)).finish(39)
    database = Database(database_url)
    assert await KeyLimitStore(database).spent() == {"key_1": 99}  # told at the stop, or before
    await database.close()
    async with Workers(database_url, 1) as (limiter,):
        (await limiter.admit(key)).finish(1)
        refused = await try_admit(limiter, key)
        assert isinstance(refused, InsufficientQuota)
        assert (refused.code, refused.type, refused.retry_after_s) == ("insufficient_quota", "insufficient_quota", None)
        assert refused.headers == {"x-should-retry": "false"}


async def test_what_was_not_spent_is_given_back(database: Database) -> None:
    store, limits = KeyLimitStore(database), KeyLimits(requests_per_minute=100)
    (given,) = await store.settle("a", [Claim("key_1", limits, requests=80)])
    assert given.requests == 80
    (rest,) = await store.settle("b", [Claim("key_1", limits, requests=80)])
    assert rest.requests == 20
    (again,) = await store.settle("a", [Claim("key_1", limits, requests=80, unspent={given.second: 70})])
    assert again.requests == 70


async def test_two_who_take_at_the_same_time_do_not_get_the_same(database_url: str) -> None:
    databases = [Database(database_url) for _ in range(4)]
    limits = KeyLimits(requests_per_minute=50)

    async def take(place: int) -> int:
        store = KeyLimitStore(databases[place % 4])
        (ledger,) = await store.settle(f"api-{place % 4}", [Claim("key_1", limits, requests=3)])
        return ledger.requests

    assert sum(await asyncio.gather(*(take(place) for place in range(40)))) == 50
    for database in databases:
        await database.close()


async def test_several_keys_are_settled_at_once_in_any_order(database_url: str) -> None:
    databases = [Database(database_url) for _ in range(2)]
    names = ["key_a", "key_b", "key_c"]

    async def settle(database: Database, order: list[str]) -> None:
        for _ in range(10):
            await KeyLimitStore(database).settle(
                "p", [Claim(name, KeyLimits(token_budget=9), tokens=1) for name in order]
            )

    await asyncio.gather(settle(databases[0], names), settle(databases[1], names[::-1]))
    assert await KeyLimitStore(databases[0]).spent() == dict.fromkeys(names, 20)
    for database in databases:
        await database.close()
