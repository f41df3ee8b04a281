"""The API over the real local engine with a tiny model of random weights: the whole way, nothing scripted."""

import math
import socket
import subprocess
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from server.engine.launch import engine_command
from server.settings import EngineSettings
from server.store import migrations
from tests.fixtures.server import serve_api

pytestmark = pytest.mark.slow

NEVER = [{"kind": "regex", "config": {"pattern": "impossible"}}]
ALWAYS = [{"kind": "regex", "config": {"pattern": ""}}]
ASK = [{"role": "user", "content": "Hello?"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    from tests.fixtures.models import make_model  # noqa: PLC0415 -- imports torch, which takes seconds

    folder: Path = tmp_path_factory.mktemp("local")
    make_model(folder / "model")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    argv, environment = engine_command(
        EngineSettings(model=str(folder / "model"), context_tokens=1024, threads=1), port
    )
    engine = subprocess.Popen(argv, env=environment)
    try:
        url = f"sqlite:///{folder / 'mulligan.db'}"
        migrations.upgrade(url)
        with (
            serve_api(folder, url, f"http://127.0.0.1:{port}") as api,
            OpenAI(base_url=f"{api.url}/v1", api_key=api.keys["admin"], max_retries=0, timeout=30) as sdk,
        ):
            yield sdk
    finally:
        engine.terminate()
        engine.wait(20)


def test_a_completion(client):
    completion = client.chat.completions.create(model="base", messages=ASK, max_completion_tokens=8)
    # The model's weights are random: now and then it ends by itself.
    written = completion.usage.completion_tokens
    assert completion.choices[0].finish_reason == ("length" if written == 8 else "stop")
    assert 1 <= written <= 8
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + written


def test_a_failing_episode_logs_its_reflections_as_they_were_sampled(client):
    extra = {"verifiers": NEVER, "retry": {"max_retries": 2, "reflection_max_tokens": 12}}
    completion = client.chat.completions.create(model="base", messages=ASK, max_completion_tokens=8, extra_body=extra)
    said = completion.model_extra["mulligan"]
    assert (said["outcome"], len(said["attempts"]), len(said["reflections"])) == ("exhausted", 3, 2)
    parts = [*said["attempts"], *said["reflections"]]
    assert completion.usage.total_tokens == sum(part["usage"]["total_tokens"] for part in parts)
    episode = client.get(f"/episodes/{said['episode_id']}?tokens=true", cast_to=object)
    for reflection in episode["reflections"]:
        assert 0 < len(reflection["token_ids"]) == len(reflection["logprobs"]) <= 12
        assert all(logprob <= 0 and math.isfinite(logprob) for logprob in reflection["logprobs"])
        assert len(reflection["prompt_ids"]) == reflection["usage"]["prompt_tokens"]


def test_a_live_stream_is_what_the_engine_gave(client):
    stream = client.chat.completions.create(
        model="base", messages=ASK, max_completion_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    written = chunks[-1].usage.completion_tokens
    assert 1 <= written <= 8
    said = chunks[-1].model_extra["mulligan"]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    episode = client.get(f"/episodes/{said['episode_id']}", cast_to=object)
    assert episode["attempts"][0]["answer"]["content"] == text.replace("\0", "\u2400")
    assert episode["attempts"][0]["usage"]["completion_tokens"] == written


def test_a_tool_call_comes_whole_and_held(client):
    fields = {"model": "base", "messages": ASK, "tools": [TOOL], "max_completion_tokens": 200}
    call = client.chat.completions.create(**fields).choices[0].message.tool_calls[0]
    assert call.function.name == "add"
    with client.chat.completions.stream(**fields, extra_body={"verifiers": ALWAYS}) as stream:
        for _ in stream:
            pass
        (held,) = stream.get_final_completion().choices[0].message.tool_calls
    assert (held.function.name, held.function.arguments) == (call.function.name, call.function.arguments)


def test_a_prompt_over_the_context_is_a_bad_request(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="base", messages=[{"role": "user", "content": "x" * 5000}])
    assert caught.value.code == "engine_refused"


@pytest.mark.parametrize("stream", [False, True])
def test_raw_text_is_continued_and_its_retry_has_the_same_columns(client, stream):
    asked = {"model": "base", "prompt": "once upon", "max_tokens": 6, "logprobs": 2, "stream": stream}
    for extra in ({}, {"verifiers": NEVER}):
        answer = client.completions.create(**asked, extra_body=extra)
        *_, last = answer if stream else [answer]
        said = last.model_extra["mulligan"]
        assert len(said["attempts"]) == 1 + len(said["reflections"]) == (2 if extra else 1)
        if stream:
            continue
        (choice,) = answer.choices
        rows = choice.logprobs
        assert len(rows.tokens) == len(rows.token_logprobs) == len(rows.top_logprobs) == len(rows.text_offset)
        assert 1 <= len(rows.tokens) <= 6
        assert all(logprob <= 0 for logprob in rows.token_logprobs)
        assert rows.text_offset[0] == 0


def test_token_ids_are_continued_as_their_text_is(client):
    asked = {"model": "base", "max_tokens": 4, "temperature": 0}
    one, other = client.completions.create(prompt=[[5, 6, 7], [5, 6, 7]], **asked).choices
    assert one.text == other.text
    with pytest.raises(openai.BadRequestError):
        client.completions.create(prompt=[10**8], **asked)


@pytest.mark.parametrize("extra", [{}, {"verifiers": NEVER}])
def test_a_response_streams_and_goes_on(client, extra):
    asked = {"model": "base", "input": "Hello?", "max_output_tokens": 8, "top_logprobs": 2}
    *_, last = client.responses.create(**asked, stream=True, extra_body=extra)
    response = last.response
    assert last.type == f"response.{response.status}"
    (part,) = response.output[0].content
    assert 1 <= len(part.logprobs) <= 8
    assert all(len(token.top_logprobs) == 2 for token in part.logprobs)
    usage = response.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert (usage.output_tokens_details.reasoning_tokens > 0) is bool(extra)
    # A tiny model may write U+0000, which the log shows by its sign (server/store/cleaning.py).
    assert client.responses.retrieve(response.id).output_text == response.output_text.replace("\0", "\u2400")
    again = client.responses.create(**{**asked, "input": "And?"}, previous_response_id=response.id)
    assert again.usage.input_tokens > response.model_extra["mulligan"]["attempts"][0]["usage"]["prompt_tokens"]


def test_no_embeddings_is_said(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="base", input="hello")
    assert caught.value.code == "unsupported_by_engine"
