"""The limits of keys as clients meet them, over two API processes on one database."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import OpenAI, RateLimitError

from server.domain import KeyLimits
from server.store.key_limits import KeyLimitStore
from server.store.keys import KeyStore
from tests.fixtures.server import serve_api, with_database


@pytest.fixture(scope="module")
def other(api, folder, wire_engine):
    """A second API process on the same database."""
    with serve_api(folder, api.settings.database_url, wire_engine.url, keys=api.keys) as server:
        yield server


def make_key(api, **limits) -> tuple[str, str]:
    """Make a limited key: its secret and its id."""
    create = lambda database: KeyStore(database).create("limited", limits=KeyLimits(**limits))  # noqa: E731
    secret, key = with_database(api.settings.database_url, create)
    return secret, key.id


def chat(server, key, text="4", **fields):
    body = {"model": "sums", "messages": [{"role": "user", "content": text}], **fields}
    return server.ask("POST", "/v1/chat/completions", body, key=key)


def test_two_processes_answer_exactly_as_many_requests_as_the_limit(api, other):
    secret, _ = make_key(api, requests_per_minute=20)
    started = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda place: chat((api, other)[place % 2], secret), range(60)))
    assert time.monotonic() - started < 55, "too slow a machine for this test to mean anything"
    assert sorted(status for status, _, _ in answers) == [200] * 20 + [429] * 40
    for status, body, headers in answers:
        assert headers["x-ratelimit-limit-requests"] == "20"
        if status == 429:
            assert body["error"]["code"] == "rate_limit_exceeded"
            assert "20 requests a minute" in body["error"]["message"]
            assert 1 <= int(headers["retry-after"]) <= 61
            assert headers["x-ratelimit-remaining-requests"] == "0"


def test_a_refused_request_is_not_logged_and_its_key_still_reads(api, other):
    secret, _ = make_key(api, requests_per_minute=1)
    assert [chat(api, secret)[0], chat(api, secret)[0]] == [200, 429]
    listed = api.ask("GET", "/v1/episodes", key=secret)
    assert (listed[0], len(listed[1]["data"])) == (200, 1)


def test_a_budget_counts_retries_too_over_both_processes(api, other):
    secret, key_id = make_key(api, token_budget=100_000)
    answers = [chat(server, secret, "5 | I miscounted. | 4") for server in (api, other)]
    used = sum(body["usage"]["total_tokens"] for _, body, _ in answers)
    deadline = time.monotonic() + 20
    spent = 0
    while spent != used and time.monotonic() < deadline:
        time.sleep(0.1)
        spent = with_database(api.settings.database_url, lambda db: KeyLimitStore(db).spent()).get(key_id, 0)
    assert spent == used > 0


def test_the_sdk_does_not_try_again_when_the_budget_is_used_up(api, wire_engine):
    secret, _ = make_key(api, token_budget=1)
    ask = {"model": "sums", "messages": [{"role": "user", "content": "4"}]}
    with OpenAI(base_url=f"{api.url}/v1", api_key=secret, max_retries=2, timeout=20) as client:
        client.chat.completions.create(**ask)
        asked = len(wire_engine.requests)
        with pytest.raises(RateLimitError) as caught:
            client.chat.completions.create(**ask)
    assert (caught.value.code, caught.value.type) == ("insufficient_quota", "insufficient_quota")
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in caught.value.response.headers
    assert len(wire_engine.requests) == asked


def test_no_more_run_at_the_same_time_than_may_whichever_process_they_reach(api, other, wire_engine):
    secret, _ = make_key(api, max_concurrent=1)
    began = threading.Event()

    def hold():
        began.set()
        return chat(api, secret, "sleep 3 4", verify="off")

    with ThreadPoolExecutor(1) as pool:
        before = len(wire_engine.requests)
        held = pool.submit(hold)
        began.wait(10)
        deadline = time.monotonic() + 10
        while len(wire_engine.requests) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        status, body, headers = chat(other, secret)
        assert (status, headers["retry-after"]) == (429, "1")
        assert "1 requests at the same time" in body["error"]["message"]
        assert held.result()[0] == 200
    assert chat(other, secret)[0] == 200
    assert chat(api, secret)[0] == 200


def test_a_stream_frees_its_slot_when_the_client_leaves(api, other):
    secret, _ = make_key(api, max_concurrent=1)
    with OpenAI(base_url=f"{api.url}/v1", api_key=secret, max_retries=0, timeout=20) as client:
        stream = client.chat.completions.create(
            model="sums", messages=[{"role": "user", "content": "one two three four five six 4"}], stream=True
        )
        next(iter(stream))
        stream.close()
    deadline = time.monotonic() + 10
    status = 0
    while status != 200 and time.monotonic() < deadline:
        status = chat(other, secret)[0]
    assert status == 200
