import json
import re

import pytest

from server.api.fields import FIELDS, NESTED
from server.api.gate import PUBLIC, SURFACES
from server.api.openapi import OPERATIONS, PUBLIC_PATHS
from server.api.rest.application import build_rest
from tests.fixtures.api import CLIENT, make_api
from tests.fixtures.asgi import ask


@pytest.fixture(scope="module")
def document():
    return build_rest().openapi()


def test_it_has_what_the_gate_serves_by_itself_and_what_the_framework_does(document):
    assert {("POST", operation.path) for operation in OPERATIONS} == set(SURFACES)
    assert {"/v1/chat/completions", "/v1/models", "/v1/tasks", "/health"} <= set(document["paths"])


def test_every_reference_leads_somewhere(document):
    found = re.findall(r'"#/components/(\w+)/([^"]+)"', json.dumps(document))
    assert {room for room, _ in found} == {"schemas", "responses"}
    assert [(room, name) for room, name in found if name not in document["components"][room]] == []


def test_every_field_says_what_becomes_of_it(document):
    schemas = document["components"]["schemas"]
    described = {name: one.get("description", "") for name, one in schemas["ChatRequest"]["properties"].items()}
    assert described == {name: f"{field.use}: {field.reason}" for name, field in FIELDS.items()}
    assert all(schemas[shape.__name__]["properties"] for shape in NESTED if shape.__name__ in schemas)


def test_every_route_but_the_public_ones_needs_a_key_and_may_end_in_our_errors(document):
    assert {path for path in document["paths"] if path in PUBLIC_PATHS} == PUBLIC_PATHS
    assert {("GET", path) for path in PUBLIC_PATHS} <= PUBLIC
    assert document["security"] == [{"key": []}]
    for path, methods in document["paths"].items():
        for route in methods.values():
            assert ("security" in route) == (path in PUBLIC_PATHS)
            own = {status for status in route["responses"] if not status.startswith("2")}
            assert own == ({"500", "503"} if path in PUBLIC_PATHS else {
                "400", "401", "403", "404", "409", "413", "422", "429", "500", "502", "503", "504"
            })  # fmt: skip
    assert "HTTPValidationError" not in json.dumps(document)


async def test_it_is_served_and_so_is_the_page_that_shows_it(document):
    api = make_api()
    assert (await api.get("/openapi.json", key=None)).json() == document
    page = await api.get("/docs", key=None)
    assert (page.status, b"/openapi.json" in page.body) == (200, True)


async def test_the_page_runs_nothing_from_elsewhere_but_what_it_knows():
    page = (await make_api().get("/docs", key=None)).body.decode()
    foreign = re.findall(r"<(?:script|link)[^>]*\"https?://[^>]*>", page)
    assert len(foreign) == 2
    for tag in foreign:
        assert re.search(r'@\d+\.\d+\.\d+/[^"]+" integrity="sha384-[A-Za-z0-9+/]{64}" crossorigin="anonymous"', tag), (
            tag
        )


class TestLittleThings:
    @pytest.mark.parametrize("path", ["/health", "/docs", "/openapi.json"])
    async def test_watchers_may_ask_for_the_head_only(self, path):
        api = make_api()
        answer = await ask(api.gate, "HEAD", path)
        assert answer.status == 200

    @pytest.mark.parametrize(
        ("method", "path", "hint"),
        [
            ("POST", "/chat/completions", "/v1/chat/completions"),
            ("POST", "/v1/v1/chat/completions", "/v1/chat/completions"),
            ("GET", "/models", "/v1/models"),
            ("GET", "/models/sums", "/v1/models/sums"),
            ("GET", "/v1/tasks/", "/v1/tasks"),
        ],
    )
    async def test_a_path_beside_v1_is_told_the_right_one(self, method, path, hint):
        answer = await ask(make_api().gate, method, path, {} if method == "POST" else None, key=CLIENT)
        assert (answer.status, answer.error["code"]) == (404, "unknown_url")
        assert answer.error["message"].endswith(f"Did you mean {hint}?")

    async def test_a_path_that_is_nowhere_gets_no_hint(self):
        answer = await ask(make_api().gate, "GET", "/nowhere", key=CLIENT)
        assert (answer.status, "Did you mean" in answer.error["message"]) == (404, False)

    async def test_an_unknown_model_is_told_where_the_models_are(self):
        assert "GET /v1/models" in (await make_api().chat("gpt-5")).error["message"]
