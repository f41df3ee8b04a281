"""`Idempotency-Key` over real processes: two on one database, a kill -9, and an SDK that comes back by itself."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from openai import OpenAI, UnprocessableEntityError
from sqlalchemy import select, update

from server.api.replay import LEASE_S
from server.store.clock import UnixNow
from server.store.tables import replays
from tests.fixtures.server import make_keys, serve_api, with_database
from tests.fixtures.wire_engine import serve_wire_engine
from tests.integration.api.test_cancel import Client, wait_for

FOUR = [{"kind": "regex", "config": {"pattern": "4"}}]


@contextmanager
def serve_pair(folder, database_url):
    """Two API processes on one database, and their engine."""
    keys = make_keys(database_url)
    with (
        serve_wire_engine() as engine,
        serve_api(folder / "1", database_url, engine.url, keys=keys) as first,
        serve_api(folder / "2", database_url, engine.url, keys=keys) as second,
    ):
        yield first, second, engine


@pytest.fixture
def pair(database_url, tmp_path):
    """A pair on each dialect."""
    with serve_pair(tmp_path, database_url) as served:
        yield served


@pytest.fixture
def sqlite_pair(sqlite_url, tmp_path):
    """A pair, for what is the same on both dialects."""
    with serve_pair(tmp_path, sqlite_url) as served:
        yield served


def ask_once(api, name, text, **fields):
    return Client(api, text, headers={"idempotency-key": name}, **fields).read()


def test_every_process_repeats_the_answer_and_of_many_at_once_one_runs(pair):
    first, second, engine = pair
    for number, fields in enumerate(({}, {"stream": True}, {"n": 2}, {"stream": True, "verifiers": FOUR})):
        name = f"shape {number}"
        status, body, headers = ask_once(first, name, "4 it is", **fields)
        assert (status, "x-mulligan-replayed" in headers) == (200, False)
        asked = len(engine.requests)
        for api in (second, first):
            again = ask_once(api, name, "4 it is", **fields)
            assert again[:2] == (200, body)
            assert again[2]["x-mulligan-replayed"] == "true"
            assert again[2]["content-type"] == headers["content-type"]
            assert again[2]["x-request-id"] != headers["x-request-id"]
            assert again[2].get("x-mulligan-episode") == headers.get("x-mulligan-episode")
        assert len(engine.requests) == asked
        assert ask_once(second, name, "something else", **fields)[0] == 422
    asked = len(engine.requests)
    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask_once, (first, second)[n % 2], "b", "sleep 1") for n in range(8)]
        answers = [one.result() for one in asking]
    assert {status for status, _, _ in answers} == {200, 409}
    assert all(int(headers["retry-after"]) >= 1 for status, _, headers in answers if status == 409)
    assert len({body for status, body, _ in answers if status == 200}) == 1
    assert len(engine.requests) == asked + 1


def test_an_sdk_that_comes_too_early_gets_the_answer_by_itself(sqlite_pair):
    def ask_sdk(api, text, **options):
        messages = [{"role": "user", "content": text}]
        with OpenAI(base_url=f"{api.url}/v1", api_key=api.keys["client"], timeout=30, **options) as sdk:
            return sdk.chat.completions.with_raw_response.create(
                model="default", messages=messages, extra_headers={"Idempotency-Key": "c"}
            )

    first, second, engine = sqlite_pair
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask_sdk, first, "sleep 1.5", max_retries=0)
        wait_for(lambda: engine.requests)
        again = ask_sdk(second, "sleep 1.5", max_retries=8)
        assert again.retries_taken >= 1
        assert again.text == running.result().text
    assert (again.headers["x-mulligan-replayed"], len(engine.requests)) == ("true", 1)
    with pytest.raises(UnprocessableEntityError):  # no SDK sends that again
        ask_sdk(second, "something else", max_retries=8)


def test_the_claim_of_a_killed_process_expires(pair):
    """Its claim holds until the lease is over; here the clock is not waited for, but moved."""
    first, second, engine = pair
    client = Client(first, "sleep 60", headers={"idempotency-key": "e"})
    wait_for(lambda: engine.requests)
    first.kill()
    client.leave()
    assert ask_once(second, "e", "sleep 60")[0] == 409

    async def move_clock(database):
        async with database.write() as connection:
            await connection.execute(update(replays).values(expires_at=replays.c.expires_at - LEASE_S))

    with_database(second.settings.database_url, move_clock)
    status, body, _ = ask_once(second, "e", "4")
    assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, "4")


def test_a_living_process_renews_its_claims_and_keeps_answers_as_long_as_the_settings_say(sqlite_pair):
    async def look(database):
        async with database.read() as connection:
            found = await connection.execute(select(replays.c.expires_at, replays.c.expires_at - UnixNow()))
            return found.one_or_none()

    first, second, engine = sqlite_pair
    client = Client(first, "sleep 60", headers={"idempotency-key": "f"})
    wait_for(lambda: engine.requests)
    expires_at, _ = with_database(first.settings.database_url, look)
    wait_for(lambda: with_database(first.settings.database_url, look)[0] > expires_at, 20)
    client.leave()  # nothing is kept of what was cancelled
    wait_for(lambda: with_database(first.settings.database_url, look) is None)
    assert ask_once(second, "f", "4")[0] == 200
    _, left_s = with_database(first.settings.database_url, look)
    assert abs(left_s - first.settings.limits.replay_s) < 60
