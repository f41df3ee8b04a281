"""What is forced upon answers: calls and JSON, and nothing upon the rows beside them."""

import asyncio
import json
import math
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from local_engine import grammars
from local_engine.answer_shapes import read_choice, read_shape
from local_engine.chat import begin_chat, complete_chat, read_chat, stream_chat
from local_engine.errors import DecodingFailed, Refused
from local_engine.grammars import Grammar, GrammarBuilder
from local_engine.models import Base
from local_engine.prefixes import PrefixStore
from local_engine.prompts import read_tools
from local_engine.running_batch import RunningBatch
from local_engine.sampling import Sampling
from local_engine.sequences import Sequence
from local_engine.service import Service
from tests.integration.local_engine.conftest import Client

MESSAGES = [{"role": "user", "content": "hi"}]
# Tools in a prompt of bytes would take more than the tiny model's context.
BODY = {"model": "base", "input_ids": [40, 41, 42], "temperature": 0, "max_tokens": 120}
POINT = {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"]}
WORD = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'


def tool(name: str, parameters: Any = POINT, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **fields}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def schema(of: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": of}}}


@pytest.fixture(scope="module")
def builder(base: Base) -> Iterator[GrammarBuilder]:
    made = GrammarBuilder(base.tokenizer, base.vocabulary, base.eos_ids)
    yield made
    made.stop()


async def build(builder: GrammarBuilder, **body: Any) -> Grammar:
    choice, tools = read_choice(body.get("tool_choice"), read_tools(body.get("tools")))
    source = read_shape(body, choice, tools)
    assert source is not None
    return await builder.build(source)


def can_follow(grammar: Grammar, vocabulary: int) -> set[int]:
    logits = torch.zeros(vocabulary)
    grammar.block(logits)
    return set(torch.isfinite(logits).nonzero()[:, 0].tolist())


def encode(base: Base, text: str) -> list[int]:
    """Write a text in single characters and the marks of calls: the tokenizer knows the models' scripts as well."""
    pieces = re.findall(r"</?tool_call>|.", text, re.DOTALL)
    return [token for piece in pieces for token in base.tokenizer(piece, add_special_tokens=False)["input_ids"]]


def accepts(base: Base, grammar: Grammar, text: str) -> bool:
    """Say whether a grammar lets a text be written, and be the whole answer."""
    for token in [*encode(base, text), *base.eos_ids]:
        if token not in can_follow(grammar, base.vocabulary):
            return False
        grammar.accept(token)
    return grammar.complete and grammar.failure is None


async def ask(service: Service, **body: Any) -> dict[str, Any]:
    answer = await complete_chat(read_chat({**BODY, **body}, service), service, Client())
    return answer["choices"][0]


@pytest.mark.parametrize(
    ("body", "good", "bad"),
    [
        (
            {"tools": [tool("f"), tool("g")], "tool_choice": "required"},
            [
                WORD % ("f", '{"x": 1}'),
                WORD % ("g", '{"x":2}'),
                WORD % ("f", '{"x": 1}') + "\n" + WORD % ("g", '{"x": 1}'),
            ],
            ["hi", "", WORD % ("f", "{}"), WORD % ("h", '{"x": 1}'), WORD % ("f", '{"x": 3}'), WORD % ("f", "false")],
        ),
        (
            {"tools": [tool("f"), tool("g")], "tool_choice": "required", "parallel_tool_calls": False},
            [WORD % ("g", '{"x": 1}')],
            [WORD % ("f", '{"x": 1}') + "\n" + WORD % ("f", '{"x": 1}')],
        ),
        (
            {"tools": [tool("f"), tool("g")], "tool_choice": named("g")},
            [WORD % ("g", '{"x": 1}')],
            [WORD % ("f", '{"x": 1}'), WORD % ("g", '{"x": 1}') + "\n" + WORD % ("g", '{"x": 1}')],
        ),
        (
            {"tools": [tool("f", None)], "tool_choice": "required"},
            [WORD % ("f", "{}")],
            [WORD % ("f", '{"y": 1}'), WORD % ("f", "null")],
        ),
        (
            {"tools": [tool('f"\\é<|im_end|>')], "tool_choice": "required"},
            [WORD % ('f\\"\\\\é<|im_end|>', '{"x": 1}')],
            [],
        ),
        (
            {"tools": [tool("f", strict=True), tool("g")]},
            ["hi", "Let me <b>see</b>. " + WORD % ("f", '{"x": 2}') + "\nSo.", WORD % ("g", '{"y": [1, null]}')],
            ["So: " + WORD % ("f", '{"x": 3}'), WORD % ("h", "{}"), "<tool_call> what", "hi" + WORD % ("g", "3")],
        ),
        (
            {"tools": [tool("f", strict=True)], "parallel_tool_calls": False},
            ["hi", "Well: " + WORD % ("f", '{"x": 2}')],
            [WORD % ("f", '{"x": 2}') + "\n" + WORD % ("f", '{"x": 2}'), WORD % ("f", '{"x": 3}')],
        ),
        (
            {"response_format": {"type": "json_object"}},
            ['{"a": [1, {"b": null}]}', "{}"],
            ["[]", "{} ", "1", '{"a":  1}'],
        ),
        (schema({"enum": [1, "<tool_call>"]}), ["1", '"<tool_call>"'], ["2", "<tool_call>"]),
        (
            {"tools": [tool("f")], **schema(POINT)},
            ['{"x": 1}', WORD % ("f", '{"any": 1}')],
            ["hi", '{"x": 3}', "x" + WORD % ("f", "{}")],
        ),
    ],
    ids=["required", "one", "named", "bare", "odd name", "strict", "strict one", "object", "schema", "either"],
)
async def test_what_may_be_written(base: Base, builder: GrammarBuilder, body: dict, good: list, bad: list):
    for text in good:
        assert accepts(base, await build(builder, **body), text), text
    for text in bad:
        assert not accepts(base, await build(builder, **body), text), text


async def test_no_value_of_a_schema_becomes_a_mark_of_the_chat(base: Base, builder: GrammarBuilder):
    grammar = await build(builder, **schema({"const": "<|im_end|>"}))
    for byte in b'"<|im_end|>"':
        (token,) = can_follow(grammar, base.vocabulary)
        assert base.tokenizer.decode([token]) == chr(byte)
        grammar.accept(token)
    assert can_follow(grammar, base.vocabulary) == base.eos_ids


@pytest.mark.parametrize(
    ("given", "good", "bad"),
    [
        ({"properties": {"a": {"properties": {"b": {}}}}}, {"a": {"b": 1}}, {"a": {"c": 1}}),
        ({"properties": {"a": {}}, "additionalProperties": True}, {"a": 1, "b": 2}, None),
        ({"properties": {"properties": {"type": "integer"}}}, {"properties": 1}, {"properties": "x"}),
        ({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, {"a": 1, "b": 2}, None),
        ({"properties": {"a": {}}, "anyOf": [{"required": ["b"]}, {"required": ["a"]}]}, {"a": 1, "b": 2}, {}),
        ({"$ref": "#/$defs/p", "$defs": {"p": POINT}}, {"x": 1}, {"x": 1, "y": 1}),
        ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, {"a": [1, 1]}, {"a": 1}),
        ({"type": ["object", "null"]}, {}, None),
    ],
    ids=str,
)
async def test_arguments_are_objects_of_what_is_listed(
    base: Base, builder: GrammarBuilder, given: dict, good: Any, bad: Any
):
    body = {"tools": [tool("f", given)], "tool_choice": "required"}
    assert accepts(base, await build(builder, **body), WORD % ("f", json.dumps(good)))
    assert not accepts(base, await build(builder, **body), WORD % ("f", json.dumps(bad)))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"tools": [tool("f")], "tool_choice": named("g")}, "tool_choice names 'g'"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tool_choice": named("f")}, "there are no tools"),
        ({"tools": [tool("f")], "tool_choice": "sometimes"}, "tool_choice must be"),
        ({"tools": [tool("f")], "tool_choice": {"type": "function"}}, "tool_choice must be"),
        (
            {"tools": [tool("f"), tool("g", [])], "tool_choice": "required"},
            r"tools\[1\].function.parameters \(g\) must",
        ),
        ({"tools": [tool("f", {"type": "object", "not": {}}, strict=True)]}, r'parameters \(f\).*"not"'),
        ({"tools": [tool("f", {"properties": {"a": {"type": "x"}}})], "tool_choice": "required"}, "Invalid type: x"),
        ({"response_format": {"type": "json_schema"}}, "schema must be an object"),
        ({"response_format": {"type": "structural_tag"}}, "response_format must be"),
        ({"response_format": ["json_object"]}, "response_format must be"),
        (schema(True), "must be an object"),
        (schema({"type": "nonsense"}), "Invalid type: nonsense"),
        (schema({"type": "array", "uniqueItems": True}), "response_format.json_schema.schema .*uniqueItems"),
        (schema({"type": "string", "format": "path"}), "Unknown format: path"),
        (schema({"type": "string", "pattern": "(?=a)b"}), "look-around"),
        (schema({"$ref": "https://example.com/x"}), "example.com/x"),
        (schema({"allOf": [{"multipleOf": 97}, {"multipleOf": 131}]}), "multipleOf goes up to 10000"),
        (schema({"type": "number", "multipleOf": 1e-7}), "multipleOf goes up to 10000"),
        (schema({"enum": ["x" * 1000] * 70}), "65536 bytes"),
        (
            schema({"allOf": [{"anyOf": [{"properties": {f"{k}{i}": {}}} for k in "abc"]} for i in range(12)]}),
            "too large",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_refuses_what_cannot_be_forced(service: Service, body: dict, says: str):
    with pytest.raises(Refused, match=f"(?s){says}"):
        await ask(service, **body)


async def test_refuses_what_is_nested_too_deep(service: Service):
    deep: dict[str, Any] = {"type": "integer"}
    for _ in range(70):
        deep = {"items": deep}
    with pytest.raises(Refused, match="nested over 64 deep"):
        await ask(service, **schema(deep))


async def test_building_is_beside_the_loop_and_has_an_end(service: Service, monkeypatch: pytest.MonkeyPatch):
    going_on, seen = threading.Event(), []

    def take_long(*_: Any) -> None:
        seen.append(threading.current_thread() is threading.main_thread())
        going_on.wait(20)

    monkeypatch.setattr(grammars.GrammarBuilder, "_build", take_long)
    monkeypatch.setattr(grammars, "_BUILD_TIMEOUT_S", 0.05)
    try:
        with pytest.raises(Refused, match="no grammar could be built in"):
            await ask(service, **schema(POINT))
        assert seen == [False]
    finally:
        going_on.set()


@pytest.mark.parametrize(
    "more", [{}, {"min_tokens": 60}, {"ignore_eos": True}, {"temperature": 2.0, "seed": 3}], ids=str
)
async def test_an_answer_ends_where_its_shape_does(service: Service, more: dict):
    for _ in range(3):
        answer = await ask(service, **schema(POINT), **more)
        assert answer["message"]["content"].replace(" ", "") in ('{"x":1}', '{"x":2}')
        assert (answer["finish_reason"], answer["matched_stop"]) == ("stop", next(iter(service.base.eos_ids)))


async def test_what_is_cut_off_says_so(service: Service):
    answer = await ask(service, tools=[tool("f")], tool_choice="required", max_tokens=6)
    assert (answer["message"]["content"], answer["finish_reason"]) == ('<tool_call>\n{"na', "length")
    assert "tool_calls" not in answer["message"]


@pytest.mark.parametrize("choice", ["required", named("g")], ids=["required", "named"])
async def test_a_forced_call_streams_as_one(service: Service, choice: Any):
    body = {"tools": [tool("f"), tool("g")], "tool_choice": choice, "parallel_tool_calls": False}
    whole = await ask(service, **body)
    request = read_chat({**BODY, **body, "stream": True}, service)
    sequence = await begin_chat(request, service)
    chunks = [chunk["choices"][0] async for chunk in stream_chat(request, sequence, service, Client())]
    (call,) = whole["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"])["x"] in (1, 2)
    assert call["function"]["name"] in (["g"] if choice != "required" else ["f", "g"])
    streamed = [part["function"] for chunk in chunks for part in chunk["delta"].get("tool_calls", [])]
    assert streamed == [call["function"]]
    assert not any(chunk["delta"].get("content") for chunk in chunks)
    assert whole["finish_reason"] == chunks[-1]["finish_reason"] == "tool_calls"


async def test_a_named_tool_is_the_only_one_in_the_prompt(service: Service):
    body = {"model": "base", "messages": MESSAGES}
    both = read_chat({**body, "tools": [tool("f"), tool("g")], "tool_choice": named("g")}, service)
    alone = read_chat({**body, "tools": [tool("g")]}, service)
    assert both.prompt == alone.prompt
    assert (both.shape is None, alone.shape is None) == (False, True)


async def test_log_probabilities_are_among_what_was_allowed(service: Service):
    answer = await ask(service, **schema({"enum": [True, False]}), logprobs=True, top_logprobs=5, temperature=1.0)
    first, *rest = answer["logprobs"]["content"]
    weights = [math.exp(top["logprob"]) for top in first["top_logprobs"]]
    assert sum(weights) == pytest.approx(1.0, abs=1e-5)
    assert {top["token"] for top in first["top_logprobs"] if top["logprob"] > -1e9} == {"t", "f"}
    assert all(math.isfinite(top["logprob"]) for row in (first, *rest) for top in row["top_logprobs"])
    assert all(row["logprob"] == 0.0 for row in rest)


async def test_rows_without_a_grammar_are_the_same_beside_one(base: Base, builder: GrammarBuilder):
    plain = [
        Sampling(ignore_eos=True),
        Sampling(sampling_seed=5, ignore_eos=True),
        Sampling(temperature=0, ignore_eos=True),
    ]
    penalised = Sampling(frequency_penalty=0.5, top_p=0.9, ignore_eos=True)

    async def run(*, forced: bool) -> list[Sequence]:
        shape = await build(builder, **schema({"type": "string", "minLength": 200})) if forced else None
        rows = [Sequence(id="s", prompt=[5, 6, 7], adapter="", sampling=s, limit=40) for s in (*plain, penalised)]
        other = Sequence(id="o", prompt=[8, 9], adapter="", sampling=plain[1], limit=40, grammar=shape)
        torch.manual_seed(0)
        with torch.inference_mode():
            batch = RunningBatch(base, base.model, PrefixStore(10**7))
            batch.join([*rows[:2], other, *rows[2:]])
            while batch.sequences:
                batch.step()
        assert base.tokenizer.decode(other.tokens).startswith('"') is forced
        return rows

    for beside, alone in zip(await run(forced=True), await run(forced=False), strict=True):
        assert len(beside.tokens) == 40
        assert beside.tokens == alone.tokens
        assert beside.logprobs == alone.logprobs  # to the last bit


async def test_a_grammar_that_cannot_go_on_ends_its_row_alone(base: Base, builder: GrammarBuilder, monkeypatch):
    shape = await build(builder, **schema({"type": "string", "minLength": 200}))
    forced = Sequence(id="f", prompt=[1, 2], adapter="", sampling=Sampling(), limit=30, grammar=shape)
    other = Sequence(id="o", prompt=[1, 2], adapter="", sampling=Sampling(ignore_eos=True), limit=30)
    with torch.inference_mode():
        batch = RunningBatch(base, base.model, PrefixStore(10**7))
        batch.join([forced, other])
        batch.step()
        shape._matcher.consume_token(next(iter(base.eos_ids)))  # in the midst of a string
        while batch.sequences:
            batch.step()
    assert forced.finish is not None
    assert forced.finish.type == "error"
    assert "cannot go on" in str(forced.finish.matched)
    assert other.finish is not None
    assert (other.finish.type, len(other.tokens)) == ("length", 30)


async def test_the_client_hears_of_a_grammar_that_cannot_go_on(service: Service, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grammars.Grammar, "accept", lambda self, _: setattr(self, "failure", "it is too complex"))
    with pytest.raises(DecodingFailed, match="too complex"):
        await ask(service, **schema(POINT))


async def test_forced_rows_of_many_kinds_decode_together(service: Service):
    asks = [
        ask(service, **schema(POINT)),
        ask(service, tools=[tool("f")], tool_choice="required", parallel_tool_calls=False),
        ask(service, max_tokens=20, ignore_eos=True),
        ask(service, **schema({"const": [1, 2]})),
    ]
    point, call, free, const = await asyncio.gather(*asks)
    assert json.loads(point["message"]["content"])["x"] in (1, 2)
    assert call["message"]["tool_calls"][0]["function"]["name"] == "f"
    assert free["finish_reason"] == "length"
    assert json.loads(const["message"]["content"]) == [1, 2]
