"""The openai SDK's responses, completions and embeddings, unmodified, against a real API process."""

import asyncio
from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel


class Sum(BaseModel):
    """What an answer is parsed into."""

    total: int


class Add(BaseModel):
    """What a call's arguments are parsed into."""

    a: int
    b: int


TOOL = {
    "type": "function",
    "name": "add",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    },
}
CALL = 'call add {"a": 4}'


@pytest.fixture
def other(api) -> Iterator[OpenAI]:
    """The SDK with another key, an admin's."""
    with OpenAI(base_url=f"{api.url}/v1", api_key=api.keys["admin"], max_retries=0, timeout=20) as sdk:
        yield sdk


def test_a_response_and_its_continuation(client, wire_engine):
    first = client.responses.create(model="default", input="4", instructions="Count.")
    assert (first.status, first.output_text, first.usage.total_tokens) == ("completed", "4", 12)
    assert first.model_extra["mulligan"]["outcome"] == "unverified"
    second = client.responses.create(model="default", input="and?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert wire_engine.requests[-1]["messages"] == [
        {"role": "user", "content": "4"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "and?"},
    ]


def test_a_conversation_that_the_client_keeps(client, wire_engine):
    asked = [{"role": "user", "content": "4"}]
    first = client.responses.create(model="default", input=asked)
    client.responses.create(model="default", input=[*asked, *first.output, {"role": "user", "content": "and?"}])
    assert [one["content"] for one in wire_engine.requests[-1]["messages"]] == ["4", "4", "and?"]


def test_a_failed_and_recovered_response(client):
    raw = client.responses.with_raw_response.create(model="sums", input="5 | I miscounted. | 4")
    response = raw.parse()
    assert response.output_text == "4"
    assert raw.headers["x-mulligan-outcome"] == response.model_extra["mulligan"]["outcome"] == "recovered"
    assert response.usage.total_tokens == 37
    shown = client.responses.retrieve(response.id)
    assert shown.to_dict() == response.to_dict()
    assert [item.content[0].text for item in client.responses.input_items.list(response.id)] == [
        "5 | I miscounted. | 4"
    ]


def test_another_key_finds_nothing(client, other):
    first = client.responses.create(model="default", input="4")
    with pytest.raises(openai.NotFoundError) as caught:
        other.responses.create(model="default", input="and?", previous_response_id=first.id)
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")
    with pytest.raises(openai.NotFoundError):
        other.responses.retrieve(first.id)
    unstored = client.responses.create(model="default", input="4", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="default", input="and?", previous_response_id=unstored.id)


def test_parse(client):
    response = client.responses.parse(model="default", input='{"total": 4}', text_format=Sum)
    assert response.output_parsed == Sum(total=4)
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.responses.create(model="sums", input="5 | Hm. | 5", extra_body={"retry": {"on_failure": "error"}})
    assert caught.value.code == "verification_failed"


def test_parse_reads_calls_and_their_outputs_go_back(client, wire_engine):
    tool = openai.pydantic_function_tool(Add, name="add")
    flat = {"type": "function", **tool["function"]}
    response = client.responses.parse(model="default", input='call add {"a": 1, "b": 3}', tools=[flat])
    (call,) = response.output
    assert (call.type, call.name, call.parsed_arguments) == ("function_call", "add", {"a": 1, "b": 3})
    done = client.responses.create(
        model="default",
        previous_response_id=response.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "4"}],
        tools=[flat],
    )
    assert done.status == "completed"
    *_, answer, output = wire_engine.requests[-1]["messages"]
    assert answer["tool_calls"][0]["id"] == output["tool_call_id"] == call.call_id
    again = [{"role": "user", "content": "4"}, *response.output]
    again.append({"type": "function_call_output", "call_id": call.call_id, "output": "4"})
    assert client.responses.create(model="default", input=again, tools=[flat]).status == "completed"


@pytest.mark.parametrize("model", ["default", "sums"])
def test_the_stream_helper(client, model):
    with client.responses.stream(model=model, input="4 5 6") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert final.output_text == "4 5 6"
    assert final.usage.total_tokens == 14


def test_the_stream_helper_parses_and_reads_calls(client):
    with client.responses.stream(model="default", input='{"total": 4}', text_format=Sum) as stream:
        assert stream.get_final_response().output_parsed == Sum(total=4)
    with client.responses.stream(model="default", input=CALL, tools=[TOOL]) as stream:
        events = list(stream)
        (call,) = stream.get_final_response().output
    assert call.parsed_arguments == {"a": 4}
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments


def test_a_held_stream_shows_attempts_where_asked_for(client):
    stream = client.responses.create(
        model="sums",
        input="5 | I miscounted. | 4",
        stream=True,
        extra_body={"stream_options": {"include_attempts": True}},
    )
    events = list(stream)
    texts = [event.text for event in events if event.type == "response.reasoning_summary_text.done"]
    assert "I miscounted." in texts[1]
    assert [event.text for event in events if event.type == "response.output_text.done"] == ["4"]
    assert events[-1].response.model_extra["mulligan"]["outcome"] == "recovered"


def test_a_refusal_midway_is_raised(client):
    options = {"stream_options": {"include_attempts": True}, "retry": {"on_failure": "error"}}
    stream = client.responses.create(model="sums", input="5 | Hm. | 6", stream=True, extra_body=options)
    seen = []
    with pytest.raises(openai.APIError) as caught:
        seen.extend(event.type for event in stream)
    assert caught.value.code == "verification_failed"
    assert seen[-1] == "response.failed"
    assert "response.output_text.delta" not in seen


def test_the_async_client(api):
    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=f"{api.url}/v1", api_key=api.keys["client"], max_retries=0) as sdk:
            response = await sdk.responses.create(model="sums", input="5 | Hm. | 4")
            async with sdk.responses.stream(model="default", input="one two") as stream:
                return [response.output_text, (await stream.get_final_response()).output_text]

    assert asyncio.run(ask()) == ["4", "one two"]


def test_what_is_refused_is_named(client):
    for fields, param in (
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"extra_body": {"temprature": 1}}, "temprature"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="default", input="4", **fields)
        assert caught.value.param == param
    with pytest.raises(openai.NotFoundError) as missing:
        client.files.list()
    assert missing.value.code == "unsupported_endpoint"
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.delete("resp_1")
    assert missing.value.code == "unsupported_endpoint"


def test_completions(client, wire_engine):
    completion = client.completions.create(model="default", prompt=["one two", "three"], max_tokens=5, echo=True)
    assert [choice.text for choice in completion.choices] == ["one twoone two", "threethree"]
    assert completion.usage.total_tokens == 13 + 12
    assert client.completions.create(model="default", prompt=[1, 2, 3]).choices[0].text == "3 tokens"
    assert wire_engine.requests[-1]["prompt"] == [1, 2, 3]
    recovered = client.completions.create(model="sums", prompt="5 | Hm. | 4")
    assert (recovered.choices[0].text, recovered.model_extra["mulligan"]["outcome"]) == ("4", "recovered")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="sums", prompt=[1, 2])
    assert caught.value.code == "unverifiable_prompt"


@pytest.mark.parametrize("model", ["default", "sums"])
def test_completions_in_a_stream(client, model):
    options = {"include_usage": True}
    chunks = list(client.completions.create(model=model, prompt="4 5", stream=True, stream_options=options))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "4 5"
    assert chunks[-1].usage.total_tokens == 13
    assert chunks[-1].model_extra["mulligan"]["outcome"] == ("passed" if model == "sums" else "unverified")


def test_embeddings(client, wire_engine, monkeypatch):
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="base", input="hello")
    assert caught.value.code == "unsupported_by_engine"
    monkeypatch.setattr(wire_engine, "embeddings", True)
    made = client.embeddings.create(model="default", input=["hello", "you"])
    assert [len(one.embedding) for one in made.data] == [2, 2]
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="text-embedding-3-small", input="hello")
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="base", input=[1, 2, 3])
    assert caught.value.param == "input"
