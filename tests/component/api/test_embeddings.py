"""`/v1/embeddings` and what of OpenAI's endpoints is refused by name."""

from pathlib import Path

import openai.resources
import pytest
from openai.types.embedding_create_params import EmbeddingCreateParams

from server.api.rest.refused import REFUSED
from server.api.surfaces.embeddings import EMBEDDINGS_FIELDS, EmbeddingsBody
from server.domain import Adapter, KeyLimits, Scope
from tests.fixtures.api import ADMIN, make_api
from tests.fixtures.asgi import ask

GIVEN = b'{"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}], "model": "base"}'


def make_embedding_api():
    api = make_api()
    api.engine.embeddings = GIVEN
    return api


async def embed(api, *, key="mk-client", **fields):
    return await api.post("/v1/embeddings", {"model": "base", "input": "hello", **fields}, key=key)


class TestEmbeddings:
    def test_every_field_of_the_sdk_is_in_the_table_and_no_other(self):
        assert set(EMBEDDINGS_FIELDS) == set(EmbeddingCreateParams.__annotations__) == set(EmbeddingsBody.model_fields)

    def test_the_page_has_them_all(self):
        page = (Path(__file__).parents[3] / "docs" / "responses.md").read_text()
        for name, field in EMBEDDINGS_FIELDS.items():
            assert f"| `{name}` | {field.use} | {field.reason} |" in page

    @pytest.mark.parametrize("model", ["base", "default"])
    async def test_the_engines_answer_is_passed_through(self, model):
        api = make_embedding_api()
        answer = await embed(api, model=model, encoding_format="float", dimensions=4, user="u")
        assert (answer.status, answer.body) == (200, GIVEN)
        assert answer.headers["content-type"] == "application/json"
        (call,) = api.engine.calls
        assert (call.path, call.body) == ("embeddings", {"input": "hello", "encoding_format": "float", "dimensions": 4})
        assert api.log.episodes == []

    async def test_an_engine_without_embeddings_says_so(self):
        answer = await embed(make_api())
        assert (answer.status, answer.error["code"]) == (400, "unsupported_by_engine")

    async def test_an_unknown_model_is_a_404(self):
        answer = await embed(make_embedding_api(), model="text-embedding-3-small")
        assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")

    async def test_a_task_of_others_is_a_404(self):
        api = make_embedding_api()
        api.keys.put("mk-other", tasks=("other",))
        assert (await embed(api, model="default", key="mk-other")).status == 404

    async def test_an_adapter_has_none(self):
        api = make_embedding_api()
        api.adapters.put(Adapter("default@1", "default", "/x", {}))
        api.keys.put("mk-pin", scopes=(Scope.PIN_ADAPTERS,))
        answer = await embed(api, model="default@1", key="mk-pin")
        assert (answer.status, answer.error["param"]) == (400, "model")

    async def test_a_viewer_may_not_ask(self):
        api = make_embedding_api()
        api.keys.put("mk-viewer", "viewer")
        answer = await embed(api, key="mk-viewer")
        assert (answer.status, answer.error["code"]) == (403, "insufficient_scope")

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"foo": 1}, "foo"),
            ({"input": ""}, "input"),
            ({"input": []}, "input"),
            ({"input": ["x"] * 2049}, "input"),
            ({"encoding_format": "hex"}, "encoding_format"),
            ({"dimensions": 0}, "dimensions"),
            ({"model": ""}, "model"),
        ],
    )
    async def test_wrong_fields_are_named(self, fields, param):
        answer = await embed(make_embedding_api(), **fields)
        assert (answer.status, answer.error["param"]) == (400, param)

    async def test_a_keys_limits_hold(self):
        api = make_embedding_api()
        api.engine.embeddings = GIVEN.replace(b"}]", b'}], "usage": {"prompt_tokens": 3, "total_tokens": 3}')
        api.keys.put("mk-poor", limits=KeyLimits(token_budget=4))
        answers = [await embed(api, key="mk-poor") for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert answers[2].error["code"] == "insufficient_quota"

    async def test_what_is_no_embedding_is_the_engines_fault(self):
        api = make_embedding_api()
        api.engine.embeddings = b"<html>"
        answer = await embed(api)
        assert (answer.status, answer.error["code"]) == (502, "engine_error")

    async def test_there_is_room_for_only_so_many(self):
        api = make_api(limits={"max_concurrent": 1, "max_queued": 0})
        api.engine.embeddings = GIVEN
        await api.traffic.enter(1, None)
        assert (await embed(api)).status == 429
        api.traffic.leave(1)
        assert (await embed(api)).status == 200
        assert (await embed(api)).status == 200  # the room was given back


SERVED = {"chat", "completions", "embeddings", "models", "responses"}
ELSEWHERE = {"admin": "organization", "beta": "assistants"}
"""Resources of the SDK whose path has another name; webhooks have none: the SDK reads them by itself."""

RESOURCES = sorted(
    path.stem
    for path in Path(openai.resources.__file__).parent.iterdir()
    if not path.name.startswith("_") and path.stem not in SERVED | {"webhooks"}
)


API = make_api()
"""Refusals never change it."""


class TestRefused:
    @pytest.mark.parametrize("resource", RESOURCES)
    async def test_every_other_resource_of_the_sdk_is_refused_by_name(self, resource):
        assert f"/v1/{ELSEWHERE.get(resource, resource)}" in REFUSED

    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
    async def test_a_refusal_says_what_to_do_instead(self, method):
        paths = sorted(set(REFUSED) - {"/v1/chat/completions", "/v1/responses"})
        for path, asked in [(path, path + rest) for path in paths for rest in ("", "/x/y")]:
            answer = await ask(API.gate, method, asked, {}, key=ADMIN)
            assert (answer.status, answer.error["code"]) == (404, "unsupported_endpoint"), asked
            assert answer.error["type"] == "invalid_request_error"
            assert REFUSED[path] in answer.error["message"]

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("DELETE", "/v1/responses/resp_1"),
            ("POST", "/v1/responses/resp_1/cancel"),
            ("POST", "/v1/responses/compact"),
            ("GET", "/v1/responses"),
            ("GET", "/v1/chat/completions"),
            ("DELETE", "/v1/chat/completions/chatcmpl-1"),
        ],
    )
    async def test_so_are_the_other_routes_of_what_is_served(self, method, path):
        answer = await ask(API.gate, method, path, key=ADMIN)
        assert (answer.status, answer.error["code"]) == (404, "unsupported_endpoint")

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
    async def test_a_slash_too_many_is_told_the_path_that_was_meant(self, path):
        answer = await ask(API.gate, "POST", path + "/", {}, key=ADMIN)
        assert (answer.status, answer.error["code"]) == (404, "unknown_url")
        assert answer.error["message"].endswith(f"Did you mean {path}?")

    @pytest.mark.parametrize("path", ["/v1/filesystem", "/v1/nothing", "/v1/files2/x"])
    async def test_what_only_begins_alike_is_an_unknown_path(self, path):
        answer = await ask(API.gate, "GET", path, key=ADMIN)
        assert (answer.status, answer.error["code"]) == (404, "unknown_url")

    async def test_a_key_comes_first(self):
        assert (await ask(API.gate, "GET", "/v1/files")).status == 401
