"""What every engine does with a request: text, tokens, log-probabilities, stops, streams, tool calls."""

import asyncio
import json

import pytest

from server.domain import Usage
from server.engine.sglang import SGLangEngine
from tests.contract.engine.conftest import World
from tests.contract.engine.reference import Reference

HELLO = [{"role": "user", "content": "hello there"}]
GREEDY = {"messages": HELLO, "temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def reference(world: World) -> Reference:
    return Reference(world.model)


def tool(name: str) -> dict:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}


async def test_says_what_it_serves(engine: SGLangEngine, world: World):
    assert await engine.ready()
    state = await engine.state()
    assert state.base_model == str(world.model)
    assert state.adapters == {}


async def test_answers_greedily_as_the_model_does(engine: SGLangEngine, reference: Reference):
    prompt = reference.render(HELLO)
    answer = await engine.complete(GREEDY, "", with_tokens=True)
    assert list(answer.token_ids) == reference.likeliest(prompt, answer.token_ids)
    assert answer.message == {"role": "assistant", "content": reference.text(answer.token_ids)}
    assert answer.finish_reason == "length"
    assert answer.usage == Usage(len(prompt), 24)


async def test_gives_no_tokens_unless_asked(engine: SGLangEngine):
    answer = await engine.complete(GREEDY, "")
    assert (answer.prompt_ids, answer.token_ids, answer.logprobs) == ((), (), ())
    assert answer.choice_logprobs is None


@pytest.mark.parametrize(
    ("sampling", "temperature"),
    [({}, 1.0), ({"temperature": 0.6}, 0.6), ({"temperature": 0}, 1.0), ({"top_p": 0.3, "temperature": 1.3}, 1.3)],
    ids=["neutral", "temperature", "greedy", "top_p"],
)
async def test_gives_the_tokens_and_their_logprobs(
    engine: SGLangEngine, reference: Reference, sampling: dict, temperature: float
):
    answer = await engine.complete({"messages": HELLO, "max_tokens": 20, **sampling}, "", with_tokens=True)
    assert list(answer.prompt_ids) == reference.render(HELLO)
    assert len(answer.token_ids) == answer.usage.completion_tokens == len(answer.logprobs)
    expected = reference.logprobs(answer.prompt_ids, answer.token_ids, temperature=temperature)
    assert list(answer.logprobs) == pytest.approx(expected, abs=1e-4)


async def test_an_end_of_turn_token_counts_and_is_no_text(engine: SGLangEngine, reference: Reference):
    end = reference.tokenizer.eos_token_id
    body = {"messages": HELLO, "max_tokens": 20, "logit_bias": {str(end): 100}}
    answer = await engine.complete(body, "", with_tokens=True)
    assert answer.finish_reason == "stop"
    assert answer.message["content"] == ""
    assert list(answer.token_ids) == [end]
    assert answer.usage.completion_tokens == 1


async def test_samples_where_a_request_is_silent(engine: SGLangEngine):
    answers = await asyncio.gather(*(engine.complete({"messages": HELLO, "max_tokens": 8}, "") for _ in range(6)))
    assert len({answer.message["content"] for answer in answers}) > 1


async def test_continues_exact_tokens(engine: SGLangEngine, reference: Reference):
    chat = await engine.complete(GREEDY, "", with_tokens=True)
    again = await engine.complete_ids(chat.prompt_ids, "", {"temperature": 0, "max_new_tokens": 24})
    assert list(again.token_ids) == list(chat.token_ids)
    assert again.message["content"] == chat.message["content"]
    assert again.finish_reason == "length"
    assert again.usage == chat.usage
    assert list(again.prompt_ids) == list(chat.prompt_ids)
    sampled = await engine.complete_ids(chat.prompt_ids, "", {"max_new_tokens": 12})
    expected = reference.logprobs(sampled.prompt_ids, sampled.token_ids)
    assert list(sampled.logprobs) == pytest.approx(expected, abs=1e-4)


async def test_continuing_stops_at_a_token(engine: SGLangEngine, reference: Reference):
    prompt = reference.render(HELLO)
    whole = await engine.complete_ids(prompt, "", {"temperature": 0, "max_new_tokens": 24})
    stop = whole.token_ids[9]
    sampling = {"temperature": 0, "max_new_tokens": 24, "stop_token_ids": [stop]}
    answer = await engine.complete_ids(prompt, "", sampling)
    assert list(answer.token_ids) == list(whole.token_ids[: list(whole.token_ids).index(stop) + 1])
    assert answer.finish_reason == "stop"


async def test_stops_before_a_string(engine: SGLangEngine):
    whole = (await engine.complete(GREEDY, "")).message["content"]
    stop = next(char for char in whole[3:] if char.isascii() and char.isprintable())
    cut = await engine.complete({**GREEDY, "stop": [stop, "never seen"]}, "", with_tokens=True)
    assert cut.message["content"] == whole.partition(stop)[0]
    assert cut.finish_reason == "stop"
    assert cut.usage.completion_tokens == len(cut.token_ids) < 24


async def test_gives_openai_logprobs_where_asked_for(engine: SGLangEngine):
    answer = await engine.complete({**GREEDY, "logprobs": True, "top_logprobs": 3}, "", with_tokens=True)
    assert answer.choice_logprobs is not None
    rows = answer.choice_logprobs["content"]
    assert [row["logprob"] for row in rows] == pytest.approx(list(answer.logprobs), abs=1e-5)
    assert all(len(row["top_logprobs"]) == 3 for row in rows)
    assert all(row["top_logprobs"][0]["logprob"] == pytest.approx(row["logprob"], abs=1e-5) for row in rows)


async def test_streams_the_same_text(engine: SGLangEngine):
    whole = await engine.complete(GREEDY, "")
    body = {**GREEDY, "stream_options": {"include_usage": True}}
    chunks = [json.loads(payload) async for payload in engine.stream(body, "")]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    *told, last = chunks
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == whole.usage.completion_tokens
    assert last["usage"]["prompt_tokens"] == whole.usage.prompt_tokens
    assert told[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in told)
    assert text == whole.message["content"]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in told]
    assert reasons[:-1] == [None] * (len(reasons) - 1)
    assert reasons[-1] == "length"


async def test_parses_a_tool_call(engine: SGLangEngine):
    answer = await engine.complete({**GREEDY, "tools": [tool("add")]}, "", with_tokens=True)
    assert answer.finish_reason == "tool_calls"
    assert answer.message["content"] is None
    (call,) = answer.message["tool_calls"]
    assert call["type"] == "function"
    assert call["id"]
    assert call["function"]["name"] == "add"
    assert json.loads(call["function"]["arguments"]) == {"x": 1, "unit": "é"}
    assert len(answer.token_ids) == 4


async def test_streams_a_tool_call(engine: SGLangEngine):
    chunks = [json.loads(payload) async for payload in engine.stream({**GREEDY, "tools": [tool("add")]}, "")]
    deltas = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls") or []]
    assert deltas[0]["function"]["name"] == "add"
    assert json.loads("".join(delta["function"]["arguments"] for delta in deltas)) == {"x": 1, "unit": "é"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert not any(chunk["choices"][0]["delta"].get("content") for chunk in chunks)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("malformed", 'Let me see. <tool_call>\n{"name": "malformed", "arguments": {"x": }\n</tool_call>'),
        ("cut", 'Sure. <tool_call>\n{"name": "cut", "arg'),
    ],
)
@pytest.mark.parametrize("with_tokens", [False, True])
async def test_a_call_that_cannot_be_read_stays_text(engine: SGLangEngine, name: str, text: str, with_tokens: bool):
    answer = await engine.complete({**GREEDY, "tools": [tool(name)]}, "", with_tokens=with_tokens)
    assert answer.message == {"role": "assistant", "content": text}
    assert answer.finish_reason == "stop"


async def test_a_call_to_a_tool_that_was_not_offered_is_a_call(engine: SGLangEngine):
    answer = await engine.complete({**GREEDY, "tools": [tool("unknown")]}, "")
    assert [call["function"] for call in answer.message["tool_calls"]] == [{"name": "nowhere", "arguments": "{}"}]


async def test_tool_choice_none_takes_the_tools_away(engine: SGLangEngine, reference: Reference):
    answer = await engine.complete({**GREEDY, "tools": [tool("add")], "tool_choice": "none"}, "", with_tokens=True)
    assert list(answer.prompt_ids) == reference.render(HELLO)


async def test_the_prompt_is_the_same_on_every_engine(engine: SGLangEngine, reference: Reference):
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"x": 2}'}}
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": "add"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
        {"role": "user", "content": "thanks"},
    ]
    seen_by_template = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "add"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"x": 2}}}]},
        *messages[3:],
    ]
    given = {"type": "function", "function": {"parameters": {"type": "object"}, "name": "add", "strict": True}}
    shown = {"type": "function", "function": {**given["function"], "description": None}, "defer_loading": None}
    answer = await engine.complete({**GREEDY, "messages": messages, "tools": [given]}, "", with_tokens=True)
    assert list(answer.prompt_ids) == reference.render(seen_by_template, [shown])
