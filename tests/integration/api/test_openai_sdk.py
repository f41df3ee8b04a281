"""The openai SDK, unmodified, against a real API process."""

import openai
import pytest
from openai import AsyncOpenAI, OpenAI, pydantic_function_tool
from pydantic import BaseModel


class Sum(BaseModel):
    """The shape of an answer."""

    total: int


class Add(BaseModel):
    """The arguments of a tool."""

    a: int
    b: int


def ask(text):
    return [{"role": "user", "content": text}]


def test_models_are_listed(client, api):
    assert {"base", "default", "sums"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("sums").owned_by == "mulligan"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nothing")
    assert caught.value.code == "model_not_found"


def test_a_plain_completion(client):
    completion = client.chat.completions.create(model="default", messages=ask("Hello there"), temperature=0.5)
    assert completion.choices[0].message.content == "Hello there"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.total_tokens == 13
    assert completion.model_extra["mulligan"]["outcome"] == "unverified"


def test_a_failed_and_recovered_episode(client):
    completion = client.chat.completions.create(model="sums", messages=ask("5 | I miscounted. | 4"))
    assert completion.choices[0].message.content == "4"
    said = completion.model_extra["mulligan"]
    assert said["outcome"] == "recovered"
    assert [attempt["status"] for attempt in said["attempts"]] == ["failed", "passed"]
    assert said["reflections"][0]["text"] == "I miscounted."
    parts = [*said["attempts"], *said["reflections"]]
    assert completion.usage.total_tokens == sum(part["usage"]["total_tokens"] for part in parts) == 37


def test_verifiers_by_extra_body(client):
    completion = client.chat.completions.create(
        model="base",
        messages=ask("5 | Hm. | 6"),
        extra_body={
            "verifiers": [{"kind": "regex", "config": {"pattern": "7"}}],
            "retry": {"max_retries": 2},
            "task": "sums",
        },
    )
    said = completion.model_extra["mulligan"]
    assert (said["outcome"], len(said["attempts"])) == ("exhausted", 3)


def test_headers_say_which_episode_outcome_and_adapter(client):
    raw = client.chat.completions.with_raw_response.create(model="sums", messages=ask("4"))
    assert raw.headers["x-mulligan-outcome"] == "passed"
    assert raw.headers["x-mulligan-adapter"] == ""
    assert raw.headers["x-mulligan-episode"] == raw.parse().model_extra["mulligan"]["episode_id"]
    assert raw.parse()._request_id == raw.headers["x-request-id"]


def test_a_stream_without_verifiers(client):
    chunks = list(client.chat.completions.create(model="base", messages=ask("one two three"), stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one two three"
    assert len(chunks) == 5
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].model_extra["mulligan"]["outcome"] == "unverified"


def test_a_stream_with_verifiers_holds_only_the_verified_answer(client):
    stream = client.chat.completions.create(
        model="sums", messages=ask("5 | Hm. | 4"), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == "4"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 36
    assert chunks[-1].model_extra["mulligan"]["outcome"] == "recovered"


def test_the_sdks_own_stream_helper_understands_it(client):
    with client.chat.completions.stream(model="sums", messages=ask("5 | Hm. | 4")) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == "4"


def test_on_failure_error_is_not_retried_by_the_sdk(api, wire_engine):
    before = len(wire_engine.requests)
    with (
        OpenAI(base_url=f"{api.url}/v1", api_key=api.keys["client"], max_retries=2) as client,
        pytest.raises(openai.UnprocessableEntityError) as caught,
    ):
        client.chat.completions.create(
            model="sums", messages=ask("5 | Hm. | 5"), extra_body={"retry": {"on_failure": "error"}}
        )
    assert caught.value.code == "verification_failed"
    assert len(wire_engine.requests) == before + 3


def test_a_bad_key(api):
    with OpenAI(base_url=f"{api.url}/v1", api_key="mk-wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.models.list()
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model="sums", messages=ask("4"))


def test_an_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=ask("4"))
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("fields", [{"extra_body": {"temprature": 1}}, {"n": 99}, {"modalities": ["audio"]}])
def test_a_bad_field(client, fields):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="sums", messages=ask("4"), **fields)
    assert caught.value.param == next(iter(fields.get("extra_body", fields)))


def test_a_missing_scope(client, api):
    with pytest.raises(openai.PermissionDeniedError):
        client.post("/keys", body={"name": "x"}, cast_to=object)


def test_an_error_in_a_stream(client, wire_engine):
    stream = client.chat.completions.create(
        model="sums",
        messages=ask("sleep 0.3"),
        stream=True,
        extra_body={"retry": {"max_retries": 0, "on_failure": "error"}, "verifiers": ["four"]},
        extra_headers={"x-stainless-read-timeout": "0.2"},
    )
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    assert caught.value.code == "verification_failed"


def test_several_choices_are_each_verified(client):
    completion = client.chat.completions.create(model="sums", messages=ask("5 | Hm. | 4"), n=3)
    assert [(one.index, one.message.content) for one in completion.choices] == [(0, "4"), (1, "4"), (2, "4")]
    said = completion.model_extra["mulligan"]
    assert [one["outcome"] for one in said["choices"]] == ["recovered"] * 3
    parts = said["usage"].values()
    assert completion.usage.total_tokens == sum(part["total_tokens"] for part in parts) == 3 * 36


@pytest.mark.parametrize("model", ["sums", "base"])
async def test_several_choices_stream_side_by_side(api, model):
    async with AsyncOpenAI(base_url=f"{api.url}/v1", api_key=api.keys["client"], max_retries=0, timeout=20) as client:
        stream = await client.chat.completions.create(
            model=model, messages=ask("4 it is"), n=2, stream=True, stream_options={"include_usage": True}
        )
        texts, ids, usage = ["", ""], set(), None
        async for chunk in stream:
            ids.add(chunk.id)
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    assert (texts, len(ids), usage.total_tokens) == (["4 it is", "4 it is"], 1, 2 * 14)


def test_a_wrong_call_is_made_again_and_the_sdk_parses_the_right_one(client, wire_engine):
    tool = pydantic_function_tool(Add, name="add")
    verifier = {"kind": "function_call", "args": {"reference": {"name": "add", "arguments": {"a": 2, "b": 2}}}}
    completion = client.chat.completions.parse(
        model="default",
        messages=ask('call add {"a": 2} | I forgot b. | call add {"a": 2, "b": 2}'),
        tools=[tool],
        tool_choice={"type": "function", "function": {"name": "add"}},
        extra_body={"verifiers": [verifier]},
    )
    (call,) = completion.choices[0].message.tool_calls
    assert call.function.parsed_arguments == Add(a=2, b=2)
    assert completion.choices[0].finish_reason == "tool_calls"
    assert completion.model_extra["mulligan"]["outcome"] == "recovered"
    sent = wire_engine.requests[-1]
    assert sent["tools"][0]["function"]["strict"] is True
    assert sent["tool_choice"]["function"]["name"] == "add"


def test_a_conversation_goes_on_with_what_the_sdk_was_given(client, wire_engine):
    tool = pydantic_function_tool(Add, name="add")
    messages = ask('call add {"a": 2, "b": 2}')
    first = client.chat.completions.create(model="base", messages=messages, tools=[tool]).choices[0].message
    messages += [first, {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "4"}]
    client.chat.completions.create(model="base", messages=messages, tools=[tool])
    dumped = first.model_dump()  # with every field that is null
    client.chat.completions.create(model="base", messages=[*messages[:1], dumped, messages[2]], tools=[tool])
    shown = [request["messages"][1] for request in wire_engine.requests[-2:]]
    assert shown[0] == shown[1]
    assert shown[0]["tool_calls"][0]["function"]["name"] == "add"


def test_a_structured_answer_is_parsed_after_its_retry(client, wire_engine):
    schema = {"kind": "json_schema", "config": {"schema": Sum.model_json_schema()}}
    completion = client.chat.completions.parse(
        model="default",
        messages=ask('{"total": "four"} | It has to be a number. | {"total": 4}'),
        response_format=Sum,
        extra_body={"verifiers": [schema]},
    )
    assert completion.choices[0].message.parsed == Sum(total=4)
    first, reflection, retry = wire_engine.requests[-3:]
    assert first["response_format"] == retry["response_format"]
    assert "response_format" not in reflection


def test_a_task_may_ignore_what_nobody_knows(client, api):
    made = {"name": "lax", "unknown_fields": "ignore"}
    assert api.ask("POST", "/v1/tasks", made)[0] == 201
    assert client.chat.completions.create(model="lax", messages=ask("4"), extra_body={"colour": "red"}).choices


def test_a_base_url_without_v1_is_told_so(api):
    with (
        OpenAI(base_url=api.url, api_key=api.keys["client"], max_retries=0) as client,
        pytest.raises(openai.NotFoundError, match="Did you mean /v1/chat/completions"),
    ):
        client.chat.completions.create(model="sums", messages=ask("4"))
