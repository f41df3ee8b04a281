"""What clients force by default, with the demo model behind the API: calls by name, calls at all, JSON of a model."""

import json
import socket
import subprocess
from pathlib import Path
from typing import Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from server.engine.launch import engine_command
from server.settings import EngineSettings
from server.store import migrations
from tests.fixtures.server import serve_api

pytestmark = pytest.mark.slow

MODEL = Path(__file__).parents[3] / "demo/model"
ASK = [{"role": "user", "content": "Book a table for 4 in Rome."}]
NEVER = [{"kind": "regex", "config": {"pattern": "impossible"}}]


class Booking(BaseModel):
    """A booking whose fields a tiny model cannot write on without an end."""

    city: Literal["Rome", "Paris"]
    outside: bool


def tool(name: str) -> dict:
    return {"type": "function", "function": {"name": name, "parameters": Booking.model_json_schema()}}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("forced")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    argv, environment = engine_command(EngineSettings(model=str(MODEL), context_tokens=1024, threads=1), port)
    engine = subprocess.Popen(argv, env=environment)
    try:
        url = f"sqlite:///{folder / 'mulligan.db'}"
        migrations.upgrade(url)
        with (
            serve_api(folder, url, f"http://127.0.0.1:{port}") as api,
            OpenAI(base_url=f"{api.url}/v1", api_key=api.keys["admin"], max_retries=0, timeout=60) as sdk,
        ):
            yield sdk
    finally:
        engine.terminate()
        engine.wait(20)


def test_an_answer_is_parsed_into_a_model(client):
    completion = client.chat.completions.parse(model="base", messages=ASK, response_format=Booking)
    assert isinstance(completion.choices[0].message.parsed, Booking)
    with client.chat.completions.stream(model="base", messages=ASK, response_format=Booking) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Booking)


def test_a_tool_is_called_by_its_name(client):
    choice = {"type": "function", "function": {"name": "reserve"}}
    asked = {"model": "base", "messages": ASK, "tools": [tool("weather"), tool("reserve")], "tool_choice": choice}
    completion = client.chat.completions.create(**asked)
    (call,) = completion.choices[0].message.tool_calls
    assert call.function.name == "reserve"
    Booking.model_validate_json(call.function.arguments)
    calls = [
        part
        for chunk in client.chat.completions.create(**asked, stream=True)
        for choice in chunk.choices
        for part in choice.delta.tool_calls or ()
    ]
    assert "".join(part.function.name or "" for part in calls) == "reserve"
    Booking.model_validate_json("".join(part.function.arguments or "" for part in calls))


def test_some_tool_is_called_where_one_is_required(client):
    completion = client.chat.completions.create(
        model="base",
        messages=[{"role": "user", "content": "Hello!"}],
        tools=[tool("weather"), tool("reserve")],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    (call,) = completion.choices[0].message.tool_calls
    assert call.function.name in ("weather", "reserve")
    Booking.model_validate_json(call.function.arguments)


def test_retries_are_forced_and_reflections_are_not(client):
    extra = {"verifiers": NEVER, "retry": {"max_retries": 1, "reflection_max_tokens": 12}}
    completion = client.chat.completions.create(
        model="base",
        messages=ASK,
        response_format={"type": "json_schema", "json_schema": {"name": "b", "schema": Booking.model_json_schema()}},
        extra_body=extra,
    )
    episode = client.get(f"/episodes/{completion.model_extra['mulligan']['episode_id']}", cast_to=object)
    first, retry = (attempt["answer"]["content"] for attempt in episode["attempts"])
    assert Booking.model_validate_json(first)
    assert Booking.model_validate_json(retry)
    (reflection,) = episode["reflections"]
    assert not reflection["text"].startswith("{")


def test_what_cannot_be_forced_is_a_bad_request_that_names_it(client):
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    shape = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as caught:
        client.chat.completions.create(model="base", messages=ASK, response_format=shape)
    assert caught.value.code == "engine_refused"


def test_a_shape_of_a_response(client):
    shape = {"type": "json_schema", "name": "b", "schema": Booking.model_json_schema()}
    response = client.responses.create(model="base", input="Book Rome.", text={"format": shape})
    assert set(json.loads(response.output_text)) == {"city", "outside"}
