"""The limits of keys over processes that really are processes, and on a server that falls silent."""

import asyncio
import multiprocessing
import time

import pytest
from sqlalchemy.engine import make_url

from server.api import limits
from server.api.limits import KeyLimiter
from server.domain import ApiKey, KeyLimits
from server.errors import TooManyRequests
from server.store import key_limits
from server.store.database import Database
from server.store.key_limits import KeyLimitStore
from tests.integration.store.children import hold_slots, take_requests
from tests.integration.store.proxy import Proxy

PROCESSES = 3
LEASE_S = 3.0


def limited(**values) -> ApiKey:
    return ApiKey("key_1", "app", "", limits=KeyLimits(**values))


@pytest.fixture
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.store.children"])
    return context


async def test_processes_let_in_exactly_as_many_as_the_limit(database_url: str, processes) -> None:
    pipes = [processes.Pipe() for _ in range(PROCESSES)]
    children = [
        processes.Process(target=take_requests, args=(database_url, limited(requests_per_minute=150), f"api-{n}", told))
        for n, (_, told) in enumerate(pipes)
    ]
    started = time.monotonic()
    for child in children:
        child.start()
    counts = [await asyncio.to_thread(heard.recv) for heard, _ in pipes]
    for child in children:
        await asyncio.to_thread(child.join)
        assert child.exitcode == 0
        child.close()
    assert time.monotonic() - started < 55, "too slow a machine for this test to mean anything"
    assert sum(counts) == 150
    assert len([count for count in counts if count]) > 1, counts


async def test_the_slots_of_a_process_that_was_killed_come_free(
    database_url: str, processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_limits, "SLOT_LEASE_S", LEASE_S)
    key = limited(max_concurrent=2)
    heard, told = processes.Pipe()
    child = processes.Process(target=hold_slots, args=(database_url, key, told))
    child.start()
    assert await asyncio.to_thread(heard.recv) == 2
    database = Database(database_url)
    limiter = KeyLimiter(KeyLimitStore(database), "api-here")
    try:
        await asyncio.sleep(LEASE_S + 1)
        with pytest.raises(TooManyRequests):  # as long as it lives it keeps them
            await limiter.admit(key)
        child.kill()
        await asyncio.to_thread(child.join)
        deadline = time.monotonic() + LEASE_S + 20
        admission = None
        while admission is None and time.monotonic() < deadline:
            try:
                admission = await limiter.admit(key)
            except TooManyRequests:
                await asyncio.sleep(0.2)
        assert admission is not None
        admission.finish(0)
        await limiter.stop()
    finally:
        child.kill()
        await asyncio.to_thread(child.join)
        child.close()
        await database.close()


async def test_on_a_database_that_falls_silent_a_process_counts_for_itself(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DATABASE_TIMEOUT_S", 0.5)
    url = make_url(postgres_url)
    proxy = Proxy(url.host or "127.0.0.1", url.port or 5432)
    await proxy.open()
    reached = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
    database, direct = Database(reached), Database(postgres_url)
    key = limited(requests_per_minute=4, token_budget=1000)
    limiter = KeyLimiter(KeyLimitStore(database), "api-1")
    loop = asyncio.create_task(limiter.run())
    try:
        (await limiter.admit(key)).finish(10)
        proxy.deaf = True
        started = time.monotonic()
        for _ in range(4):
            (await limiter.admit(key)).finish(10)
        assert time.monotonic() - started < 10
        with pytest.raises(TooManyRequests):
            await limiter.admit(key)
        proxy.deaf = False
        await proxy.close()  # whoever waits for an answer learns that it never comes
        await proxy.open()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and (await KeyLimitStore(direct).spent()).get("key_1", 0) < 50:
            await asyncio.sleep(0.1)
        assert (await KeyLimitStore(direct).spent())["key_1"] >= 50
    finally:
        loop.cancel()
        await asyncio.wait([loop])
        await limiter.stop()
        await database.close()
        await direct.close()
        await proxy.close()
