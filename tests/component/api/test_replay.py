"""What a repeated request with an `Idempotency-Key` gets, and what is never kept."""

import asyncio
import json

import pytest
from structlog.testing import capture_logs

from server.api import replay
from server.api.gate import SURFACES
from server.api.replay import LEASE_S
from server.domain import Outcome
from server.errors import EngineBroken, EngineUnavailable
from tests.fixtures.api import ADMIN, CLIENT, make_api
from tests.fixtures.asgi import ask
from tests.fixtures.engines import HANG, chunks_of, reply

FOUR = [{"kind": "regex", "config": {"pattern": "4"}}]
ONCE = {"idempotency-key": "order-7"}
BODY = {"model": "default", "messages": [{"role": "user", "content": "q"}]}

SHAPES = {
    "whole": {},
    "recovered": {"verifiers": FOUR},
    "live": {"stream": True},
    "held": {"stream": True, "verifiers": FOUR},
    "several": {"n": 2},
    "several_live": {"n": 2, "stream": True},
}


async def wait_until(look):
    async with asyncio.timeout(10):
        while not look():
            await asyncio.sleep(0)


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_repeated_request_gets_the_recorded_answer(shape):
    api = make_api("5", "Hm.", "4", "4", "another answer")
    first = await api.chat(headers=ONCE, **SHAPES[shape])
    calls, episodes = len(api.engine.calls), len(api.log.episodes)
    again = await api.chat(headers=ONCE, **SHAPES[shape])
    assert (first.status, again.status, again.body) == (200, 200, first.body)
    assert (len(api.engine.calls), len(api.log.episodes)) == (calls, episodes)
    assert "x-mulligan-replayed" not in first.headers
    assert again.headers["x-mulligan-replayed"] == "true"
    ours = {name: value for name, value in first.headers.items() if name.startswith(("x-mulligan", "content-type"))}
    assert len(ours) >= 3
    assert ours.items() <= again.headers.items()
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert int(again.headers["content-length"]) == len(again.body)


PATHS = {
    "/v1/chat/completions": BODY,
    "/v1/completions": {"model": "default", "prompt": "q"},
    "/v1/responses": {"model": "default", "input": "q"},
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
async def test_everything_that_generates_can_be_repeated(path, stream):
    api = make_api("one", "two")
    body = {**PATHS[path], "stream": stream}
    first = await ask(api.gate, "POST", path, body, key=CLIENT, headers=ONCE)
    again = await ask(api.gate, "POST", path, body, key=CLIENT, headers=ONCE)
    assert (first.status, again.body, len(api.engine.calls)) == (200, first.body, 1)
    assert again.headers["x-mulligan-replayed"] == "true"


async def test_the_paths_of_all_surfaces_are_among_them():
    assert {path for _, path in SURFACES} == set(PATHS)


async def test_the_same_body_at_another_path_is_another_request():
    api = make_api("one")
    await ask(api.gate, "POST", "/v1/completions", PATHS["/v1/completions"], key=CLIENT, headers=ONCE)
    same = await ask(api.gate, "POST", "/v1/responses", PATHS["/v1/completions"], key=CLIENT, headers=ONCE)
    assert (same.status, same.error["code"]) == (422, "idempotency_key_reused")


async def test_without_the_header_nothing_is_asked_or_kept():
    api = make_api("4")
    first, again = await api.chat(), await api.chat()
    assert first.body != again.body
    assert (api.replay_store.claims, api.replay_store.rows) == (0, {})


async def test_a_verification_error_is_an_answer_too():
    api = make_api("5", "Hm.", "6", "4")
    fields = {"verifiers": FOUR, "retry": {"on_failure": "error"}, "headers": ONCE}
    first, again = await api.chat(**fields), await api.chat(**fields)
    assert (first.status, again.status, again.body) == (422, 422, first.body)
    assert again.headers["x-mulligan-replayed"] == "true"


@pytest.mark.parametrize("error", [EngineUnavailable("away"), EngineBroken("boom")])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_that_may_pass_is_not_kept(error, stream):
    api = make_api(error, "4")
    first = await api.chat(headers=ONCE, stream=stream)
    assert first.status in (502, 503)
    again = await api.chat(headers=ONCE, stream=stream)
    assert (again.status, "x-mulligan-replayed" in again.headers) == (200, False)


async def test_a_stream_that_ended_in_an_error_is_not_kept():
    api = make_api("one two")
    whole = api.engine.stream

    async def stream(body, adapter):
        yield chunks_of(reply("one two"))[1]
        raise EngineBroken("boom")

    api.engine.stream = stream
    first = await api.chat(headers=ONCE, stream=True)
    assert (first.status, first.events[-1]["error"]["code"]) == (200, "engine_error")
    api.engine.stream = whole
    again = await api.chat(headers=ONCE, stream=True)
    assert (again.lines[-1], "x-mulligan-replayed" in again.headers) == ("data: [DONE]", False)


@pytest.mark.parametrize(("script", "kept"), [(["5"], True), ([EngineBroken("boom"), "4"], False)])
async def test_of_errors_after_a_comment_only_the_verdict_is_kept(script, kept):
    api = make_api(*script)
    api.engine.delay_s = 0.05
    fields = {"stream": True, "verifiers": FOUR, "retry": {"max_retries": 0, "on_failure": "error"}}
    headers = {**ONCE, "x-stainless-read-timeout": "0.02"}
    first = await api.chat(headers=headers, **fields)
    assert (first.status, "error" in first.events[-1]) == (200, True)
    again = await api.chat(headers=headers, **fields)
    assert ("x-mulligan-replayed" in again.headers) is kept


async def test_a_refusal_is_not_kept():
    api = make_api("4")
    assert (await api.chat("nothing", headers=ONCE)).status == 404
    assert (await api.chat(headers=ONCE)).status == 200


async def test_the_answer_is_recorded_before_its_last_byte():
    api = make_api("one two")
    record, seen = api.replay_store.record, []
    for fields in ({}, {"stream": True}):
        connection = api.connect({**BODY, **fields}, headers={"idempotency-key": f"{fields}"})

        async def note(*args, connection=connection):
            seen.append((connection.answer.whole, b"[DONE]" in connection.answer.body))
            return await record(*args)

        api.replay_store.record = note
        await connection.run()
    assert seen == [(False, False), (False, False)]


async def test_the_same_key_with_another_request_is_refused():
    api = make_api("4")
    await api.chat(headers=ONCE)
    answer = await api.chat(headers=ONCE, temperature=0.5)
    assert (answer.status, answer.error["type"], answer.error["code"]) == (
        422,
        "idempotency_error",
        "idempotency_key_reused",
    )
    assert len(api.engine.calls) == 1


async def test_another_api_key_never_sees_it():
    api = make_api("mine", "yours")
    first = await api.chat(headers=ONCE)
    other = await api.chat(headers=ONCE, key=ADMIN)
    assert (first.json()["choices"][0]["message"]["content"], len(api.engine.calls)) == ("mine", 2)
    assert other.json()["choices"][0]["message"]["content"] == "yours"
    assert "x-mulligan-replayed" not in other.headers


async def test_while_the_first_one_runs_a_repetition_is_told_to_come_back():
    api = make_api(HANG)
    api.replay_store.clock = lambda: 1000.0
    first = asyncio.create_task(api.chat(headers=ONCE))
    await wait_until(lambda: api.engine.running)
    answer = await api.chat(headers=ONCE)
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (409, "idempotency_key_in_use", "1")
    for ran_s, retry_after in ((7.5, "8"), (14.0, "14")):
        api.replay_store.clock = lambda ran_s=ran_s: 1000.0 + ran_s
        assert (await api.chat(headers=ONCE)).headers["retry-after"] == retry_after
    first.cancel()
    await asyncio.wait([first])
    assert (len(api.engine.calls), api.replay_store.rows) == (1, {})


async def test_a_client_that_left_runs_it_anew():
    api = make_api(HANG, "4")
    connection = api.connect(BODY, headers=ONCE)
    running = asyncio.create_task(connection.run())
    await wait_until(lambda: api.engine.running)
    connection.leave()
    await asyncio.wait_for(running, 10)
    assert api.log.episodes[0].outcome is Outcome.CANCELLED
    again = await api.connect(BODY, headers=ONCE).run()
    assert (again.status, "x-mulligan-replayed" in again.headers) == (200, False)


async def test_what_may_not_be_kept_is_not_repeated():
    api = make_api("4")
    for _ in range(2):
        answer = await api.chat(headers=ONCE, store=False)
        assert (answer.status, answer.error["param"]) == (400, "store")
    assert (api.engine.calls, api.replay_store.rows) == ([], {})
    assert (await api.chat(headers=ONCE, store=True)).status == 200


@pytest.mark.parametrize("body", [b"{nonsense", b"[]", b'{"store": "no"}', b"\xff"])
async def test_a_body_that_cannot_be_read_is_the_usual_400(body):
    api = make_api("4")
    answer = await api.connect(body, headers=ONCE).run()
    assert (answer.status, api.replay_store.rows) == (400, {})


@pytest.mark.parametrize("name", ["x" * 256, "caf\u00e9", "a\x7f"])
async def test_keys_are_short_and_plain(name):
    answer = await make_api("4").chat(headers={"idempotency-key": name})
    assert (answer.status, answer.error["param"]) == (400, "Idempotency-Key")


async def test_an_idempotency_key_on_anything_else_is_nothing():
    api = make_api("4")
    for _ in range(2):
        answer = await ask(api.gate, "GET", "/v1/nothing", key=ADMIN, headers=ONCE)
        assert (answer.status, "x-mulligan-replayed" in answer.headers) == (404, False)
    assert api.replay_store.claims == 0


async def test_while_the_database_is_away_nothing_is_promised():
    api = make_api("4")
    await api.roster.refresh()
    api.replay_store.away = True
    answer = await api.chat(headers=ONCE)
    assert (answer.status, answer.error["code"], api.engine.calls) == (503, "store_unavailable", [])
    assert (await api.chat()).status == 200


async def test_a_database_that_goes_away_meanwhile_costs_the_record_and_not_the_answer():
    api = make_api("4")
    step = api.engine._next

    async def fall(body, adapter):
        api.replay_store.away = True
        return await step(body, adapter)

    api.engine._next = fall
    with capture_logs() as lines:
        answer = await api.chat(headers=ONCE)
    assert (answer.status, answer.whole) == (200, True)
    assert {line["event"] for line in lines} >= {"answer_not_kept", "claim_not_released"}


async def test_an_answer_that_is_too_big_is_given_and_not_kept(monkeypatch):
    monkeypatch.setattr(replay, "MOST_BYTES", 300)
    api = make_api("word " * 100)
    for fields in ({}, {"stream": True}):
        with capture_logs() as lines:
            answer = await api.chat(headers=ONCE, **fields)
        assert (answer.status, answer.whole, len(answer.body) > 300) == (200, True, True)
        assert [line["event"] for line in lines].count("answer_not_kept") == 1
    assert api.replay_store.rows == {}


async def test_a_bug_leaves_no_claim():
    api = make_api("4")
    await api.roster.refresh()
    api.roster.snapshot = None
    with capture_logs():
        assert (await api.chat(headers=ONCE)).status == 500
    assert api.replay_store.rows == {}


class TestClaims:
    async def test_a_long_request_keeps_its_claim(self):
        api = make_api(HANG)
        now = api.replay_store.clock()
        running = asyncio.create_task(api.chat(headers=ONCE))
        await wait_until(lambda: api.engine.running)
        for passed_s in range(0, 120, 10):
            api.replay_store.clock = lambda passed_s=passed_s: now + passed_s
            await api.replays.keep()
        assert (await api.chat(headers=ONCE)).status == 409
        running.cancel()
        await asyncio.wait([running])

    async def test_one_that_was_lost_meanwhile_is_answered_and_not_recorded(self):
        api = make_api(HANG, "4")
        now = api.replay_store.clock()
        connection = api.connect(BODY, headers=ONCE)
        running = asyncio.create_task(connection.run())
        await wait_until(lambda: api.engine.running)
        api.replay_store.clock = lambda: now + LEASE_S + 1  # as if this process had been stopped for so long
        again = await api.connect(BODY, headers=ONCE).run()
        assert again.status == 200
        connection.leave()
        await asyncio.wait_for(running, 10)
        third = await api.connect(BODY, headers=ONCE).run()
        assert (third.body, third.headers["x-mulligan-replayed"]) == (again.body, "true")

    async def test_answers_expire_and_are_swept(self, monkeypatch):
        monkeypatch.setattr(replay, "SWEEP_INTERVAL_S", 0)
        api = make_api("one", "two", limits={"replay_s": 100})
        now = api.replay_store.clock()
        first = await api.chat(headers=ONCE)
        api.replay_store.clock = lambda: now + 90
        await api.replays.keep()
        assert (await api.chat(headers=ONCE)).body == first.body
        api.replay_store.clock = lambda: now + 200
        await api.replays.keep()
        assert api.replay_store.rows == {}
        assert json.loads((await api.chat(headers=ONCE)).body)["choices"][0]["message"]["content"] == "two"
