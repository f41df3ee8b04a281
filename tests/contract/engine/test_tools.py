"""What every engine does with tools: choices, several calls, strictness, turns after results, calls it cannot read.

Both force calls and JSON by a grammar. The scripted pieces are written as SGLang's grammar has them; the local engine's
writes what is forced in the tokens that the tokenizer makes of it, so there the model's weights fill in the rest.
"""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from server.engine.sglang import SGLangEngine
from server.errors import EngineRefused
from tests.contract.engine.conftest import World
from tests.contract.engine.reference import Reference

HELLO = [{"role": "user", "content": "hello there"}]
BODY = {"messages": HELLO, "temperature": 0, "max_tokens": 48}
MALFORMED = 'Let me see. <tool_call>\n{"name": "malformed", "arguments": {"x": }\n</tool_call>'
SCHEMA = {
    "type": "object",
    "properties": {"x": {"type": "integer"}},
    "required": ["x"],
    "additionalProperties": False,
}
NAMED = {"type": "function", "function": {"name": "forced"}}
VERDICT = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}

_END_SOON = {" ": -100, "\n": -100, "\r": -100, "\t": -100, "}": 50}


@pytest.fixture(scope="module")
def reference(world: World) -> Reference:
    return Reference(world.model)


@pytest.fixture
def is_sglang(request: pytest.FixtureRequest) -> bool:
    return "sglang" in request.node.callspec.id


@pytest.fixture(scope="module")
def ends_soon(reference: Reference) -> dict[str, int]:
    """Keep the tiny model from white space, of which JSON may hold any amount, and have it close what it opened."""
    return {str(reference.tokenizer(char)["input_ids"][0]): weight for char, weight in _END_SOON.items()}


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA, **fields}}


def functions(message: Mapping[str, Any]) -> list[tuple[str, Any]]:
    calls = [call["function"] for call in message["tool_calls"]]
    return [(function["name"], json.loads(function["arguments"])) for function in calls]


async def read_stream(engine: SGLangEngine, body: dict) -> tuple[str, list[dict[str, Any]], str]:
    """Put a stream together: its text, its calls, its finish reason."""
    chunks = [json.loads(payload) async for payload in engine.stream(body, "")]
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    calls: dict[int, dict[str, Any]] = {}
    for choice in choices:
        for part in choice["delta"].get("tool_calls") or ():
            call = calls.setdefault(part["index"], {"name": "", "arguments": "", "id": part["id"]})
            call["name"] += part["function"].get("name") or ""
            call["arguments"] += part["function"].get("arguments") or ""
    return text, list(calls.values()), choices[-1]["finish_reason"]


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
async def test_a_call_can_be_forced(engine: SGLangEngine, choice: Any, ends_soon: dict[str, int], is_sglang: bool):
    body = {**BODY, "tools": [tool("forced"), tool("add")], "tool_choice": choice, "max_tokens": 80}
    if not is_sglang:
        body["logit_bias"] = ends_soon
    answer = await engine.complete(body, "", with_tokens=True)
    ((name, arguments),) = functions(answer.message)
    if is_sglang:
        assert (name, arguments) == ("forced", {"x": 7})
    else:
        assert name in (["forced"] if choice == NAMED else ["forced", "add"])
        assert arguments.keys() == {"x"}
        assert isinstance(arguments["x"], int)
    assert (answer.message["content"], answer.finish_reason) == (None, "tool_calls")
    text, calls, reason = await read_stream(engine, body)
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [(name, arguments)]
    assert (text, reason) == ("", "tool_calls")


async def test_a_forced_call_that_is_cut_off_stays_text(engine: SGLangEngine):
    # The first tool has no script: the grammar alone writes, a letter at a time.
    body = {**BODY, "tools": [tool("other")], "tool_choice": "required", "max_tokens": 10}
    answer = await engine.complete(body, "")
    begun = '<tool_call>\n{"name":'
    assert answer.message == {"role": "assistant", "content": begun}
    assert answer.finish_reason == "length"
    assert await read_stream(engine, body) == (begun, [], "length")


async def test_a_tool_that_is_not_there_cannot_be_forced(engine: SGLangEngine):
    named = {"type": "function", "function": {"name": "nowhere"}}
    for body in ({"tools": [tool("add")], "tool_choice": named}, {"tool_choice": "required"}):
        with pytest.raises(EngineRefused):
            await engine.complete({**BODY, **body}, "")


async def test_none_makes_no_call(engine: SGLangEngine, reference: Reference):
    body = {**BODY, "tools": [tool("add")], "tool_choice": "none"}
    answer = await engine.complete(body, "", with_tokens=True)
    assert "tool_calls" not in answer.message
    assert list(answer.prompt_ids) == reference.render(HELLO)
    text, calls, _ = await read_stream(engine, body)
    assert (text, calls) == (answer.message["content"], [])


async def test_several_calls_at_once(engine: SGLangEngine):
    body = {**BODY, "tools": [tool("parallel")], "parallel_tool_calls": True}
    answer = await engine.complete(body, "")
    assert functions(answer.message) == [("parallel", {"x": 1}), ("parallel", {"x": 2})]
    ids = [call["id"] for call in answer.message["tool_calls"]]
    assert all(ids)
    assert len(set(ids)) == 2
    assert not any("index" in call for call in answer.message["tool_calls"])
    text, calls, reason = await read_stream(engine, body)
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == functions(answer.message)
    assert len({call["id"] for call in calls}) == 2
    assert (text.strip(), reason) == ("", "tool_calls")


async def test_parallel_tool_calls_false_is_not_enforced_where_nothing_is_forced(engine: SGLangEngine):
    body = {**BODY, "tools": [tool("parallel")], "parallel_tool_calls": False}
    assert len((await engine.complete(body, "")).message["tool_calls"]) == 2


async def test_a_strict_tool_is_called_as_its_schema_says(engine: SGLangEngine):
    loose = await engine.complete({**BODY, "tools": [tool("add")]}, "")
    assert functions(loose.message) == [("add", {"x": 1, "unit": "é"})]  # not what the schema allows
    strict = await engine.complete({**BODY, "tools": [tool("add", strict=True)]}, "")
    assert "tool_calls" not in strict.message or functions(strict.message)[0][1].keys() == {"x"}
    fits = await engine.complete({**BODY, "tools": [tool("forced", strict=True)]}, "")
    assert functions(fits.message) == [("forced", {"x": 7})]


@pytest.mark.parametrize(
    ("name", "thoughts", "content"),
    [
        ("thinking", "Two and two", "Four."),
        ("musing", "I call", 'So. <tool_call>\n{"name": "musing", }\n</tool_call>'),
    ],
    ids=["plain", "with a call that cannot be read"],
)
async def test_thoughts_are_apart_where_the_engine_can_tell(
    engine: SGLangEngine, name: str, thoughts: str, content: str, is_sglang: bool
):
    body = {**BODY, "tools": [tool(name)]}
    whole = await engine.complete(body, "")
    chunks = [json.loads(payload) async for payload in engine.stream(body, "")]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    streamed = {
        field: "".join(delta.get(field) or "" for delta in deltas).strip() for field in ("content", "reasoning_content")
    }
    if not is_sglang:  # the local engine has no parser of thoughts: they stay in the content
        assert whole.message == {"role": "assistant", "content": f"<think>\n{thoughts}\n</think>\n\n{content}"}
        assert streamed == {"content": whole.message["content"], "reasoning_content": ""}
        return
    assert {field: text.strip() for field, text in whole.message.items()} == {
        "role": "assistant",
        "content": content,
        "reasoning_content": thoughts,
    }
    assert streamed == {"content": content, "reasoning_content": thoughts}


async def test_a_turn_after_results(engine: SGLangEngine):
    calls = [
        {"id": f"call_{x}", "type": "function", "function": {"name": "parallel", "arguments": json.dumps({"x": x})}}
        for x in (1, 2)
    ]
    messages = [
        *HELLO,
        {"role": "assistant", "content": "I look it up.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": "one"},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "two"}]},
    ]
    body = {**BODY, "messages": messages, "tools": [tool("thinking")]}
    whole = await engine.complete(body, "")
    assert "tool_calls" not in whole.message
    assert whole.message["content"].endswith("Four.")
    text, streamed, reason = await read_stream(engine, body)
    assert (text, streamed, reason) == (whole.message["content"], [], "stop")
    again = await engine.complete({**body, "tools": [tool("parallel")]}, "")
    assert len(again.message["tool_calls"]) == 2


@pytest.mark.parametrize("stream_options", [None, {"include_usage": True}])
async def test_a_stream_gives_the_text_of_a_call_that_cannot_be_read(engine: SGLangEngine, stream_options: Any):
    body = {**BODY, "tools": [tool("malformed")], "stream_options": stream_options}
    payloads = [payload async for payload in engine.stream(body, "")]
    assert not any(b"sglext" in payload for payload in payloads)
    assert await read_stream(engine, body) == (MALFORMED, [], "stop")
    chunks = [json.loads(payload) for payload in payloads]
    assert [chunk["choices"] == [] for chunk in chunks[-1:]] == [bool(stream_options)]


async def test_a_stream_with_tools_and_no_call_is_the_same_text(engine: SGLangEngine):
    body = {**BODY, "tools": [tool("nothing")], "max_tokens": 16, "ignore_eos": True}
    text, calls, reason = await read_stream(engine, body)
    assert (text, calls, reason) == ((await engine.complete(body, "")).message["content"], [], "length")


async def test_log_probabilities_of_a_call_are_those_of_its_tokens(engine: SGLangEngine):
    body = {**BODY, "tools": [tool("add")], "logprobs": True, "top_logprobs": 2}
    answer = await engine.complete(body, "", with_tokens=True)
    rows = (answer.choice_logprobs or {})["content"]
    assert [set(row) for row in rows] == [{"token", "bytes", "logprob", "top_logprobs"}] * len(answer.token_ids)
    assert [row["logprob"] for row in rows] == pytest.approx(list(answer.logprobs), abs=1e-5)
    assert bytes(byte for row in rows[:-1] for byte in row["bytes"]).decode().startswith("<tool_call>\n")
    assert all(len(row["top_logprobs"]) == 2 for row in rows)


@pytest.mark.parametrize(
    ("response_format", "names"),
    [
        ({"type": "json_object"}, set()),
        ({"type": "json_schema", "json_schema": {"name": "verdict", "schema": VERDICT, "strict": True}}, {"ok"}),
    ],
    ids=["json_object", "json_schema"],
)
async def test_an_answer_can_be_made_json(
    engine: SGLangEngine, response_format: dict, names: set[str], ends_soon: dict[str, int]
):
    body = {**BODY, "response_format": response_format, "logit_bias": ends_soon}
    answer = await engine.complete(body, "")
    read = json.loads(answer.message["content"])
    assert set(read) == names
    assert answer.finish_reason == "stop"
    text, _, _ = await read_stream(engine, body)
    assert json.loads(text) == read


async def test_a_schema_that_is_none_is_refused(engine: SGLangEngine):
    schema = {"type": "json_schema", "json_schema": {"name": "none", "schema": {"type": "nonsense"}}}
    with pytest.raises(EngineRefused):
        await engine.complete({**BODY, "response_format": schema}, "")
    assert await engine.ready()


async def test_images_are_refused_by_a_model_that_reads_text(engine: SGLangEngine):
    parts = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]
    body = {**BODY, "messages": [{"role": "user", "content": parts}]}
    assert not (await engine.state()).images
    with pytest.raises(EngineRefused, match="image_url"):
        await engine.complete(body, "")
    with pytest.raises(EngineRefused, match="image_url"):
        await anext(engine.stream(body, ""))


async def test_a_seed_is_accepted(engine: SGLangEngine):
    answer = await engine.complete({**BODY, "seed": 11}, "")
    assert answer.message == (await engine.complete(BODY, "")).message
