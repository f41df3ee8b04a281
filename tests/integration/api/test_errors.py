"""Every status that the API may answer with, provoked over the application as it is wired: envelope and headers."""

import asyncio

import pytest

from server.api.openapi import list_errors
from server.api.surfaces.chat import ChatSurface
from server.domain import KeyLimits
from server.errors import EngineBroken, EngineRefused, EngineTimeout, EngineUnavailable, MulliganError
from server.settings import LimitSettings, Settings
from server.store.database import Database
from server.store.keys import KeyStore
from tests.fixtures.asgi import ask
from tests.fixtures.engines import ScriptedEngine
from tests.integration.api.test_lifespan import live

ASK = {"model": "default", "messages": [{"role": "user", "content": "2+2?"}]}
FOUR = [{"kind": "regex", "config": {"pattern": "4"}}]
STRICT = {"verifiers": FOUR, "retry": {"max_retries": 0, "on_failure": "error"}}

CASES = [
    # status, type, code, param, what is sent, what the engine does
    (400, "invalid_request_error", "unknown_field", "colour", {**ASK, "colour": 1}, "4"),
    (400, "invalid_request_error", "unsupported_field", "audio", {**ASK, "audio": {}}, "4"),
    (400, "invalid_request_error", "engine_refused", None, ASK, EngineRefused("too long")),
    (404, "invalid_request_error", "model_not_found", "model", {**ASK, "model": "gpt-5"}, "4"),
    (404, "invalid_request_error", "task_not_found", "task", {**ASK, "model": "base", "task": "x"}, "4"),
    (413, "invalid_request_error", "request_too_large", None, {**ASK, "user": "u" * 5000}, "4"),
    (422, "verification_error", "verification_failed", None, {**ASK, **STRICT}, "5"),
    (502, "server_error", "engine_error", None, ASK, EngineBroken("boom")),
    (503, "server_error", "engine_unavailable", None, ASK, EngineUnavailable("away")),
    (504, "server_error", "engine_timeout", None, ASK, EngineTimeout("late")),
]
RETRIED_SOON = {429, 503}


@pytest.fixture
def settings(tmp_path, sqlite_url):
    return Settings(data_dir=tmp_path, database_url=sqlite_url, limits=LimitSettings(body_max_bytes=4096))


@pytest.fixture
async def keys(settings):
    database = Database(settings.database_url)
    try:
        store = KeyStore(database)
        return {
            "client": (await store.create("c"))[0],
            "admin": (await store.create("a", "admin"))[0],
            "hurried": (await store.create("h", limits=KeyLimits(requests_per_minute=1)))[0],
        }
    finally:
        await database.close()


def check_error(answer, status, kind, code, param=None):
    assert (answer.status, answer.error["type"], answer.error["code"]) == (status, kind, code), answer.body
    assert answer.error.keys() - {"mulligan", "usage"} == {"message", "type", "param", "code"}
    assert ("mulligan" in answer.error) == (status == 422)
    assert answer.error["param"] == param
    assert answer.error["message"]
    assert answer.headers["x-request-id"] == "mine"
    assert ("retry-after" in answer.headers) == (status in RETRIED_SOON)
    assert ("www-authenticate" in answer.headers) == (status == 401)
    assert answer.headers["content-type"] == "application/json"


def send(app, body, key, path="/v1/chat/completions", method="POST"):
    return ask(app, method, path, body, key=key, headers={"x-request-id": "mine"})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("status", "kind", "code", "param", "body", "line"), CASES)
async def test_what_can_go_wrong_in_a_chat(settings, keys, status, kind, code, param, body, line, stream):
    async with live(settings, ScriptedEngine([line])) as app:
        check_error(await send(app, {**body, "stream": stream}, keys["client"]), status, kind, code, param)


async def test_what_can_go_wrong_at_the_door(settings, keys):
    async with live(settings, ScriptedEngine(["4"])) as app:
        check_error(await send(app, ASK, None), 401, "authentication_error", "invalid_api_key")
        check_error(await send(app, ASK, "mk-wrong"), 401, "authentication_error", "invalid_api_key")
        body = {"name": "x"}
        refused = await send(app, body, keys["client"], "/v1/keys")
        check_error(refused, 403, "permission_error", "insufficient_scope")
        for status in (201, 409):
            answer = await send(app, body, keys["admin"], "/v1/tasks")
            assert answer.status == status
        check_error(answer, 409, "invalid_request_error", "conflict", answer.error["param"])
        assert (await send(app, ASK, keys["hurried"])).status == 200
        check_error(await send(app, ASK, keys["hurried"]), 429, "rate_limit_error", "rate_limit_exceeded")
        unknown = await send(app, None, keys["client"], "/nowhere", "GET")
        check_error(unknown, 404, "invalid_request_error", "unknown_url")
        wrong = await send(app, None, keys["admin"], "/v1/tasks", "DELETE")
        check_error(wrong, 405, "invalid_request_error", "method_not_allowed")


async def test_a_bug_is_a_500_that_tells_nothing_of_our_insides(settings, keys, monkeypatch):
    def broken(*_):
        raise RuntimeError("a secret of our insides")

    monkeypatch.setattr(ChatSurface, "render", broken)
    async with live(settings, ScriptedEngine(["4"])) as app:
        answer = await send(app, ASK, keys["client"])
    check_error(answer, 500, MulliganError.type, MulliganError.code)
    assert b"secret" not in answer.body


async def test_no_room_is_a_429(settings, keys):
    limits = settings.limits.model_copy(update={"max_concurrent": 1, "max_queued": 0})
    engine = ScriptedEngine(["4"], delay_s=0.3)
    async with live(settings.model_copy(update={"limits": limits}), engine) as app:
        running = asyncio.create_task(send(app, ASK, keys["client"]))
        while not engine.running:
            await asyncio.sleep(0)
        check_error(await send(app, ASK, keys["client"]), 429, "rate_limit_error", "rate_limit_exceeded")
        assert (await running).status == 200


def test_these_are_all_the_statuses_that_the_document_knows():
    elsewhere = {401, 403, 409, 429, 500}  # the tests above
    assert {case[0] for case in CASES} | elsewhere == set(list_errors())
