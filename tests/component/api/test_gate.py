import asyncio
import json
import re
import time
from contextlib import nullcontext, suppress

import pytest
from fastapi.routing import APIRoute
from structlog.testing import capture_logs

from server.api import auth
from server.api.auth import KNOWN_FOR_S, Keyring
from server.api.gate import PUBLIC, SURFACES
from server.api.wire import refuse_deep
from server.domain import Outcome, Role
from server.errors import InvalidRequest, StoreUnavailable, Unauthorized
from tests.fixtures.api import ADMIN, make_api
from tests.fixtures.asgi import ask
from tests.fixtures.engines import HANG
from tests.fixtures.stores import MemoryKeys


def walk_routes(app):
    """List every route of the server, the framework's own included."""
    doors = [*SURFACES]
    for route in flatten(app.routes):
        doors += [(method, re.sub(r"\{[^}]*\}", "x", route.path)) for method in sorted(route.methods or {"GET"})]
    return doors


def flatten(routes):
    """List routes, those of included routers too."""
    for route in routes:
        if hasattr(route, "path") and getattr(route, "methods", None):
            yield route
        else:
            inner = getattr(route, "routes", None) or route.original_router.routes
            yield from flatten(inner)


API = make_api("4")
PUBLIC_PATHS = {path for _, path in PUBLIC}
DOORS = walk_routes(API.gate.rest)


def test_the_walk_finds_the_routes():
    expected = {
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/x"),
        ("POST", "/v1/tasks"),
        ("GET", "/v1/tasks"),
        ("GET", "/v1/tasks/x"),
        ("PATCH", "/v1/tasks/x"),
        ("POST", "/v1/verifiers"),
        ("GET", "/v1/verifiers"),
        ("GET", "/v1/verifiers/x"),
        ("GET", "/v1/verifiers/x/versions"),
        ("POST", "/v1/verifiers/x/run"),
        ("GET", "/v1/episodes"),
        ("GET", "/v1/episodes/x"),
        ("POST", "/v1/tasks/x/rounds"),
        ("GET", "/v1/rounds"),
        ("GET", "/v1/rounds/x"),
        ("POST", "/v1/rounds/x/cancel"),
        ("GET", "/v1/adapters"),
        ("POST", "/v1/adapters/x/promote"),
        ("POST", "/v1/tasks/x/rollback"),
        ("POST", "/v1/keys"),
        ("GET", "/v1/keys"),
        ("DELETE", "/v1/keys/x"),
        ("GET", "/health"),
        ("GET", "/ready"),
    }
    assert expected <= set(DOORS)


async def test_every_route_refuses_who_has_no_key():
    for method, path in [door for door in DOORS if door not in PUBLIC]:
        for headers in ({}, {"authorization": "Bearer mk-wrong"}, {"authorization": "Basic mk-admin"}):
            answer = await ask(API.gate, method, path, {}, headers=headers)
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key"), (method, path)
            assert answer.headers["www-authenticate"] == "Bearer", (method, path)


async def test_every_route_needs_some_scope(monkeypatch):
    monkeypatch.setattr(auth, "SCOPES_OF_ROLE", {Role.CLIENT: frozenset()})
    API.keys.put("mk-nothing", scopes=())
    for method, path in [door for door in DOORS if door[1] not in PUBLIC_PATHS]:
        answer = await ask(API.gate, method, path, {}, key="mk-nothing")
        assert (answer.status, answer.error["code"]) == (403, "insufficient_scope"), (method, path)


@pytest.mark.parametrize("path", ["/health/", "/health/x", "//health", "/v1/models?x=/health", "/HEALTH", "/ready%2f"])
async def test_what_only_looks_public_is_not(path):
    assert (await ask(API.gate, "GET", path)).status == 401


async def test_only_few_things_are_public():
    assert sorted({path for _, path in PUBLIC}) == [
        "/admin", "/admin/", "/admin/session", "/docs", "/health", "/openapi.json", "/ready"
    ]  # fmt: skip
    assert (await ask(API.gate, "GET", "/health")).json() == {"status": "ok"}
    paths = (await ask(API.gate, "GET", "/openapi.json")).json()["paths"]
    assert "/v1/rounds/{round_id}/cancel" in paths


async def test_a_server_that_stops_says_so_in_the_envelope():
    api = make_api(HANG)
    connection = api.connect({"model": "default", "messages": [{"role": "user", "content": "?"}]})
    serving = asyncio.create_task(connection.run())
    while not api.engine.calls:
        await asyncio.sleep(0)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert (connection.answer.status, connection.answer.error["code"]) == (503, "engine_unavailable")
    assert connection.answer.headers["retry-after"]
    assert api.logged.outcome is Outcome.CANCELLED


async def test_unknown_paths_and_methods_have_the_envelope():
    unknown = await ask(API.gate, "GET", "/v1/nothing", key=ADMIN)
    assert (unknown.status, unknown.error["code"], unknown.error["type"]) == (
        404,
        "unknown_url",
        "invalid_request_error",
    )
    wrong = await ask(API.gate, "PUT", "/v1/tasks", {}, key=ADMIN)
    assert (wrong.status, wrong.error["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"]
    assert wrong.error["message"] == "PUT /v1/tasks is not allowed: there is GET, POST."


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"name": "t", "foo": 1}, "foo", "unknown_field"),
        ({}, "name", None),
        ({"name": "no/slash"}, "name", None),
        ({"name": "t", "retry": {"max_retries": -1}}, "retry.max_retries", None),
        ({"name": "t", "retry": {"x": 1}}, "retry.x", "unknown_field"),
        ({"name": "t", "verify": "maybe"}, "verify", None),
        (b"{nonsense", None, None),
    ],
)
async def test_wrong_rest_bodies_are_400_and_name_the_field(body, param, code):
    answer = await ask(API.gate, "POST", "/v1/tasks", body, key=ADMIN)
    assert (answer.status, answer.error["param"], answer.error["code"]) == (400, param, code)


@pytest.mark.parametrize("path", ["/v1/episodes/\0", "/v1/episodes?task=%00", "/v1/keys/a\0b"])
async def test_a_url_with_what_no_name_holds_is_the_clients_mistake(path):
    answer = await ask(API.gate, "GET", path, key=ADMIN)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")


async def test_a_rest_body_over_the_limit_is_413():
    api = make_api("4", limits={"body_max_bytes": 1024})
    answer = await ask(api.gate, "POST", "/v1/tasks", {"name": "x" * 2000}, key=ADMIN)
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")


async def test_a_bug_in_a_route_is_a_500_in_the_envelope():
    with capture_logs() as lines:
        answer = await ask(API.gate, "GET", "/v1/rounds", key=ADMIN)  # there is no store behind it here
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert "NoneType" not in json.dumps(answer.error)
    assert [(line["event"], line["path"]) for line in lines] == [("request_broke", "/v1/rounds")]


@pytest.mark.parametrize(("given", "kept"), [("abc-1.2:3", True), ("x" * 129, False), ("a b", False), ("a\nb", False)])
async def test_request_ids_are_the_clients_own_where_they_are_harmless(given, kept):
    answer = await ask(API.gate, "GET", "/health", headers={"x-request-id": given})
    assert (answer.headers["x-request-id"] == given) is kept
    assert answer.headers["x-request-id"]


async def test_before_the_start_everything_is_503():
    api = make_api("4")
    api.gate.rest.state.context = None
    answer = await ask(api.gate, "GET", "/v1/models", key=ADMIN)
    assert (answer.status, answer.error["code"]) == (503, "engine_unavailable")


async def test_websockets_are_closed():
    sent = []

    async def send(message):
        sent.append(message)

    await API.gate({"type": "websocket"}, None, send)
    assert sent == [{"type": "websocket.close"}]


def test_every_rest_route_answers_coroutines():
    routes = [route for route in flatten(API.gate.rest.routes) if isinstance(route, APIRoute)]
    assert len(routes) > 20
    assert [route.path for route in routes if not asyncio.iscoroutinefunction(route.endpoint)] == []


class TestKeyring:
    @pytest.fixture
    def clock(self):
        return [100.0]

    @pytest.fixture
    def keys(self):
        keys = MemoryKeys()
        keys.put("mk-1")
        return keys

    @pytest.fixture
    def keyring(self, keys, clock):
        return Keyring(keys, clock=lambda: clock[0])

    async def test_a_known_key_is_not_asked_for_again_at_once(self, keyring, keys):
        for _ in range(3):
            assert (await keyring.recognise("Bearer mk-1")).name == "mk-1"
        assert keys.reads == 1

    async def test_a_revoked_key_is_refused_within_a_second(self, keyring, keys, clock):
        assert KNOWN_FOR_S < 1
        await keyring.recognise("Bearer mk-1")
        keys.put("mk-1", revoked_at=1.0)
        clock[0] += KNOWN_FOR_S
        with pytest.raises(Unauthorized):
            await keyring.recognise("Bearer mk-1")

    async def test_a_key_that_expires_is_refused_with_its_own_word(self, keys, clock):
        keyring = Keyring(keys, clock=lambda: clock[0], now=lambda: clock[0])
        keys.put("mk-2", expires_at=110.0)
        await keyring.recognise("Bearer mk-2")
        clock[0] = 109.9
        await keyring.recognise("Bearer mk-2")
        clock[0] = 110.0
        with pytest.raises(Unauthorized, match="expired") as caught:
            await keyring.recognise("Bearer mk-2")
        assert (caught.value.status, caught.value.code) == (401, "expired_api_key")

    async def test_uses_are_written_beside_requests_and_kept_while_they_cannot_be(self, keys):
        now = [500.0]
        keyring = Keyring(keys, now=lambda: now[0])
        await keyring.note_uses()
        for header in ("Bearer mk-1", "Bearer mk-unknown"):
            with suppress(Unauthorized):
                await keyring.recognise(header)
        assert keys.uses == []
        keys.away = True
        with pytest.raises(StoreUnavailable):
            await keyring.note_uses()
        keys.away = False
        await keyring.note_uses()
        await keyring.note_uses()
        assert keys.uses == [{"key_mk-1": 500.0}]
        for now[0] in (530.0, 559.0, 565.0):
            await keyring.recognise("Bearer mk-1")
            await keyring.note_uses()
        assert keys.uses[1:] == [{"key_mk-1": 565.0}]

    async def test_a_key_that_is_forgotten_is_asked_for_at_once(self, keyring, keys):
        key = await keyring.recognise("Bearer mk-1")
        keys.keys.clear()
        keyring.forget(key.sha256)
        with pytest.raises(Unauthorized):
            await keyring.recognise("Bearer mk-1")

    async def test_many_requests_ask_once(self, keyring, keys):
        await asyncio.gather(*(keyring.recognise("bearer  mk-1") for _ in range(20)))
        assert keys.reads == 1

    async def test_one_that_leaves_does_not_take_the_others_along(self, keyring, keys):
        gate = asyncio.Event()
        look_up = keys.by_sha256

        async def slow(digest):
            await gate.wait()
            return await look_up(digest)

        keys.by_sha256 = slow
        first, second = (asyncio.create_task(keyring.recognise("Bearer mk-1")) for _ in range(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first.cancel()
        gate.set()
        assert (await second).name == "mk-1"

    async def test_without_a_database_known_keys_stay_known_and_others_wait(self, keyring, keys, clock):
        await keyring.recognise("Bearer mk-1")
        keys.away = True
        clock[0] += 60
        assert (await keyring.recognise("Bearer mk-1")).name == "mk-1"
        with pytest.raises(StoreUnavailable):
            await keyring.recognise("Bearer mk-2")

    @pytest.mark.parametrize("header", ["", "mk-1", "Bearer", "Bearer ", "Basic mk-1", "Bearer mk-2", "Bearer mk-1 x"])
    async def test_anything_else_is_refused(self, keyring, header):
        with pytest.raises(Unauthorized):
            await keyring.recognise(header)

    async def test_it_remembers_only_so_many(self, keyring, keys, monkeypatch):
        monkeypatch.setattr("server.api.auth._MOST_KNOWN", 10)
        for number in range(50):
            with pytest.raises(Unauthorized):
                await keyring.recognise(f"Bearer guess-{number}")
        assert len(keyring._known) <= 10


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/tasks"])
async def test_json_that_is_nested_too_deep_is_refused_before_anything_reads_it(path):
    deep = b'{"model": "default", "prediction": ' + b"[" * 101 + b"]" * 101 + b"}"
    answer = await ask(make_api("4").gate, "POST", path, deep, key=ADMIN)
    assert (answer.status, "nested deeper" in answer.error["message"]) == (400, True)


@pytest.mark.parametrize(
    ("body", "too_deep"),
    [
        (b"[" * 100 + b"]" * 100, False),
        (b"[" * 101 + b"]" * 101, True),
        (b'{"a":[' * 51 + b"]}" * 51, True),
        (b"[],{}," * 100 + b"[" * 100, False),
        (b'["' + b"[" * 200 + b'"]', False),
        (b'["\\"' + b"[" * 200 + b'"]', False),
        (b'["\\\\",' + b"[" * 100, True),
        (b"[]" * 101 + b'"' + b"[" * 200, False),  # a text that never ends
        (b"[]" * 101 + b"\\", False),
    ],
)
def test_depth_counts_brackets_that_are_open_and_in_no_text(body, too_deep):
    with pytest.raises(InvalidRequest) if too_deep else nullcontext():
        refuse_deep(body)


def test_a_text_without_an_end_is_not_looked_at_again_from_every_quote_in_it():
    began = time.monotonic()
    refuse_deep(b"[]" * 101 + b'"' + b'\\"' * 60_000)
    assert time.monotonic() - began < 10  # it is milliseconds; it was more than a minute


async def test_brackets_in_text_and_wide_json_are_not_depth():
    text = "[" * 500 + '\\"{{{'
    answer = await make_api("4").chat(text=text, logit_bias={str(number): 0.0 for number in range(300)})
    assert answer.status == 200
