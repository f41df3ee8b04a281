"""Whatever is sent to any route of the OpenAPI document: no 500, every error an envelope, every status documented.

The application is the real one, on SQLite, with an engine that follows a script and now and then breaks.
"""

import asyncio
import collections
import itertools
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.api.rest.application import build_rest
from server.app import create_app
from server.errors import EngineBroken, EngineRefused, EngineTimeout, EngineUnavailable
from server.settings import LimitSettings, Settings
from server.store import migrations
from server.store.database import Database
from server.store.keys import KeyStore
from tests.fixtures.asgi import Answer, ask
from tests.fixtures.engines import ScriptedEngine, reply
from tests.fixtures.schemas import Schemas, anything, odd_texts, texts

DOCUMENT = build_rest().openapi()
SCHEMAS = Schemas(DOCUMENT)
OPERATIONS = sorted(
    [
        (method.upper(), path, operation)
        for path, methods in DOCUMENT["paths"].items()
        for method, operation in methods.items()
    ],
    key=lambda one: (one[0] != "POST", "{" in one[1]),  # what makes things comes before what looks at them
)
EXAMPLES = 25
EXAMPLES_OF_GENERATION = 160
NAMES = {
    "name": ["default", "sums", "four", "nothing", "sums@1"],
    "task": ["default", "sums", "nothing"],
    "model": ["default", "base", "nothing", "sums@1"],
}
MODELS = st.sampled_from(["default", "sums", "base", "lax", "default", "nothing", "sums@1"])
VERIFIERS = [
    {"kind": "regex", "config": {"pattern": "4"}},
    {"kind": "json_schema", "config": {"schema": {"type": "string"}}},
    {"kind": "countdown", "config": {}},
    {"kind": "all_of", "config": {"verifiers": [{"kind": "regex", "config": {"pattern": "("}}]}},
]
CALL = {"name": "add", "arguments": "{}"}
SCRIPT = [
    "4", reply("5", finish_reason="length"), "four", reply(None, calls=[CALL]), "4", EngineRefused("no"), "4 and 5",
    EngineBroken("broken"), "4", EngineTimeout("late"), "5", EngineUnavailable("away"),
]  # fmt: skip
ENVELOPE = {"message": str, "type": str, "param": (str, type(None)), "code": (str, type(None))}


class App:
    """The application, alive in a loop of its own, and its admin's key."""

    def __init__(self, folder: Any, database_url: str) -> None:
        self.loop = asyncio.new_event_loop()
        limits = LimitSettings(body_max_bytes=64 * 1024, max_messages=50)
        self._settings = Settings(data_dir=folder, database_url=database_url, limits=limits)
        self._script = itertools.cycle(SCRIPT)
        self.key = ""
        self.made: dict[str, list[str]] = {}  # the ids of what was made, by the name of the parameter that takes them

    async def start(self) -> None:
        database = Database(self._settings.database_url)
        self.key = (await KeyStore(database).create("k", "admin"))[0]
        await database.close()
        engine = ScriptedEngine([lambda _body, _adapter: self._next()])
        self.gate = create_app(self._settings, open_engine=lambda _: engine)
        self._life = self.gate.rest.router.lifespan_context(self.gate.rest)
        await self._life.__aenter__()
        verifier = {"name": "four", "kind": "regex", "config": {"pattern": "4"}}
        tasks = [{"name": "sums", "verifiers": ["four"]}, {"name": "lax", "unknown_fields": "ignore"}]
        for path, body in [("/v1/verifiers", verifier), *(("/v1/tasks", task) for task in tasks)]:
            made = await ask(self.gate, "POST", path, body, key=self.key)
            assert made.status == 201, made.body

    async def stop(self) -> None:
        await self._life.__aexit__(None, None, None)

    def ask(self, method: str, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
        answer = self.loop.run_until_complete(ask(self.gate, method, path, body, key=self.key, headers=headers))
        self._note(answer)
        return answer

    def _note(self, answer: Answer) -> None:
        """Note the ids of what was made, so that later requests can ask for it."""
        if "x-mulligan-episode" in answer.headers:
            self.made.setdefault("episode_id", []).append(answer.headers["x-mulligan-episode"])
        if answer.status < 300 and answer.headers["content-type"] == "application/json":
            made = json.loads(answer.body)
            for parameter, start in (("round_id", "rd_"), ("key_id", "key_"), ("response_id", "resp_")):
                if str(made.get("id", "")).startswith(start):
                    self.made.setdefault(parameter, []).append(made["id"])

    def _next(self) -> Any:
        line = next(self._script)
        if isinstance(line, Exception):
            raise type(line)(str(line))
        return line


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("properties")
    url = f"sqlite:///{folder / 'mulligan.db'}"
    migrations.upgrade(url)
    made = App(folder, url)
    made.loop.run_until_complete(made.start())
    try:
        yield made
    finally:
        made.loop.run_until_complete(made.stop())
        made.loop.close()


def bounded(examples: int) -> settings:
    """Bound a property: the same examples every time, and no limit on one of them."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def fill_path(app: App, path: str, data: Any, operation: dict[str, Any]) -> str:
    """Fill the parameters of a path and of its query."""
    query = {}
    for parameter in operation.get("parameters", ()):
        name, strategy = parameter["name"], SCHEMAS.valid(parameter["schema"])
        if parameter["in"] == "path":
            known = st.sampled_from(NAMES[name]) if name in NAMES else st.integers(0, 9)
            value = data.draw(known | known | texts | odd_texts, label=name)
            if isinstance(value, int):  # one of those that were made: which ids they have is no part of the example
                made = app.made.get(name, ["ep_x"])
                value = made[value % len(made)]
            path = path.replace("{" + name + "}", str(value).replace("?", "") or "x")
        elif parameter["in"] == "query" and data.draw(st.booleans()):
            value = data.draw(strategy | texts | odd_texts, label=name)
            query[name] = "" if value is None else str(value)
    return path + ("?" + urlencode(query, quote_via=quote) if query else "")


def draw_body(data: Any, operation: dict[str, Any]) -> Any:
    """Draw a body: what the schema allows, something close to it, something else, or garbage."""
    if "requestBody" not in operation:
        return None
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    kinds = ["plain", "plain", "plain", "valid", "valid", "close", "close", "other", "garbage"]
    kind = data.draw(st.sampled_from(kinds))
    match kind:
        case "garbage":
            return data.draw(st.binary(max_size=40) | st.sampled_from([b"{", b'{"model": 1e999}', b"[" * 500, b"\xff"]))
        case "other":
            return json.dumps(data.draw(anything)).encode()
        case "close":
            body = data.draw(SCHEMAS.close(schema))
        case "plain":
            body = make_plain(data.draw(SCHEMAS.valid(schema)), schema, data)
        case _:
            body = data.draw(SCHEMAS.valid(schema))
    if isinstance(body, dict) and "kind" in body and data.draw(st.booleans()):
        body |= data.draw(st.sampled_from(VERIFIERS))
    if isinstance(body, dict) and "model" in body and data.draw(st.integers(0, 9)):
        body["model"] = data.draw(MODELS)
    return json.dumps(body).encode()


def make_plain(body: Any, schema: dict[str, Any], data: Any) -> Any:
    """Take out what is refused by name, what may be anything, and what needs a companion: most is answered then."""
    if "$ref" not in schema:
        return body
    fields = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"]
    vague = {name for name, field in fields.items() if not {"type", "anyOf", "$ref", "enum"} & set(field)}
    refused = {name for name, field in fields.items() if field.get("description", "").startswith("refused")}
    lonely = {"top_logprobs", "stream_options", "unverified_stream", "tool_choice", "best_of", "previous_response_id"}
    plain = {name: value for name, value in body.items() if name not in refused | lonely | vague}
    if data.draw(st.booleans()):
        text = data.draw(texts)
        short = {"messages": [{"role": "user", "content": text}], "prompt": text, "input": text}
        plain |= {name: value for name, value in short.items() if name in plain}
    return plain


def check_answer(answer: Answer, operation: dict[str, Any]) -> None:
    """Check what holds for every answer."""
    assert answer.whole
    assert "x-request-id" in answer.headers
    assert str(answer.status) in operation["responses"], f"{answer.status} is not documented: {answer.body[:300]!r}"
    assert answer.status != 500, answer.body
    if answer.status >= 400:
        check_envelope(answer.json())
        if answer.status in (429, 503):
            assert int(answer.headers["retry-after"]) > 0
    elif answer.headers["content-type"].startswith("text/event-stream"):
        for event in answer.events:
            if "error" in event and event.get("object") is None and "type" not in event:
                check_envelope(event)
    elif answer.headers["content-type"].startswith("application/json"):
        json.loads(answer.body)


def check_envelope(body: dict[str, Any]) -> None:
    """Check that an error is OpenAI's envelope."""
    assert body["error"].keys() - {"mulligan", "usage"} == ENVELOPE.keys()
    assert all(isinstance(body["error"][name], kind) for name, kind in ENVELOPE.items()), body
    assert body["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "operation"), OPERATIONS, ids=[f"{method} {path}" for method, path, _ in OPERATIONS]
)
def test_whatever_is_sent_is_answered_or_refused_in_the_envelope(app, method, path, operation):
    generates = "generation" in operation.get("tags", ())
    statuses: collections.Counter[int] = collections.Counter()

    @bounded(EXAMPLES_OF_GENERATION if generates else EXAMPLES)
    @given(st.data())
    def prove(data):
        filled = fill_path(app, path, data, operation)
        answer = app.ask(method, filled, draw_body(data, operation))
        check_answer(answer, operation)
        statuses[answer.status] += 1

    prove()
    if generates:  # else the property would only have looked at refusals
        assert statuses[200] >= EXAMPLES_OF_GENERATION / 20, statuses


@bounded(60)
@given(name=st.text(max_size=20), value=st.text(max_size=200))
def test_no_header_breaks_it(app, name, value):
    headers = {"x-stainless-read-timeout": value.encode("ascii", "ignore").decode(), "x-request-id": name}
    safe = {key: text.replace("\n", "").replace("\r", "") for key, text in headers.items()}
    body = {"model": "default", "messages": [{"role": "user", "content": "4"}]}
    answer = app.ask("POST", "/v1/chat/completions", body, safe)
    check_answer(answer, DOCUMENT["paths"]["/v1/chat/completions"]["post"])
