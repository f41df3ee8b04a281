"""The function_call kind: the request's tools, and the comparison with a reference."""

import json

import pytest

from verifiers.base import Cause, InvalidArgs, InvalidVerifier, Status
from verifiers.function_call import KIND


def tool(name, properties, required=(), **more):
    parameters = {"type": "object", "properties": properties, "required": list(required), **more}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    tool("book", {"city": {"type": "string"}, "days": {"type": "integer"}}, ["city", "days"]),
    tool(
        "heat",
        {
            "to": {"type": "number"},
            "mode": {"enum": ["eco", "full"]},
            "rooms": {"type": "array", "items": {"type": "object", "properties": {"n": {"$ref": "#/$defs/level"}}}},
            "when": {"type": "object", "properties": {"hour": {"type": "integer"}}, "required": ["hour"]},
            "free": {"type": "object"},
            "maybe": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        },
        **{"$defs": {"level": {"type": "number"}}},
    ),
    {"type": "function", "function": {"name": "ping"}},
]
BOOK = {"name": "book", "arguments": {"city": "Ulm", "days": 2}}


def call(name, arguments):
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": text}}


def free(value):
    return "heat", {"free": value}


def expect(named):
    return {"name": named[0], "arguments": named[1]}


async def judge(calls, reference=..., *, config=None, tools=TOOLS):
    args = {} if reference is ... else {"reference": reference}
    answer = {"role": "assistant", "content": None, "tool_calls": calls}
    return await KIND.compile_checked(config or {}).verify({"messages": [], "tools": tools}, answer, args)


@pytest.mark.parametrize(
    "calls",
    [
        [call("book", {"city": "Ulm", "days": 2})],
        [call("ping", {})],
        [call("heat", {"to": 20, "mode": "eco", "rooms": [{"n": 1.5}], "when": {"hour": 5}, "free": {"x": 1}})],
        [call("ping", {}), call("ping", {})],
    ],
)
async def test_without_a_reference_a_valid_call_passes(calls):
    assert (await judge(calls)).status is Status.PASSED


@pytest.mark.parametrize(
    ("calls", "says"),
    [
        (None, "there is no tool call"),
        ([], "there is no tool call"),
        ("book", "tool_calls is no list"),
        ([None], "a tool call without a function name"),
        ([{"function": None}], "a tool call without a function name"),
        ([{"function": {"name": 5, "arguments": "{}"}}], "a tool call without a function name"),
        ([{"function": {"name": "", "arguments": "{}"}}], "a tool call without a function name"),
        ([{"function": {"name": "book"}}], "the arguments of book are no JSON text"),
        ([{"function": {"name": "book", "arguments": {}}}], "the arguments of book are no JSON text"),
        ([call("book", "")], "the arguments of book are not JSON: Expecting value at line 1 column 1"),
        ([call("book", "[1]")], "the arguments of book are no JSON object"),
        (
            [call("book", '{"city": "Ulm", "city": "Ulm", "days": 2}')],
            "the arguments of book are not JSON: the key 'city' stands twice in one object",
        ),
        ([call("brook", {})], "brook is not one of the tools"),
        ([call("b\u00f6\ud800k", {})], "b\\xf6\\ud800k is not one of the tools"),
        ([call("book", {"city": "Ulm"})], 'the arguments of book are wrong at (root): "days" is a required property'),
        (
            [call("book", {"city": "Ulm", "days": "2"})],
            'the arguments of book are wrong at /days: "2" is not of type "integer"',
        ),
        (
            [call("book", {"city": "Ulm", "days": True})],
            'the arguments of book are wrong at /days: true is not of type "integer"',
        ),
        ([call("book", {"city": "Ulm", "days": 2, "hotel": 1})], "book has no argument hotel"),
        ([call("ping", {"x": 1})], "ping has no argument x"),
        (
            [call("heat", {"mode": "on"})],
            'the arguments of heat are wrong at /mode: "on" is not one of "eco" or "full"',
        ),
        (
            [call("heat", {"when": {}})],
            'the arguments of heat are wrong at /when: "hour" is a required property',
        ),
        (
            [call("heat", {"when": {"hour": 1, "minute": 2}})],
            "the arguments of heat are wrong at /when: Additional properties are not allowed "
            "('minute' was unexpected)",
        ),
        (
            [call("heat", {"rooms": [{"n": 1}, {"m": 1}]})],
            "the arguments of heat are wrong at /rooms/1: Additional properties are not allowed ('m' was unexpected)",
        ),
        ([call("ping", {})] * 65, "more than 64 calls"),
    ],
)  # fmt: skip
async def test_what_breaks_the_tools_fails_and_may_be_told(calls, says):
    verdict = await judge(calls)
    assert (verdict.status, verdict.reason, verdict.safe_for_model) == (Status.FAILED, says, True)


@pytest.mark.parametrize(
    ("calls", "reference"),
    [
        ([call("book", {"days": 2, "city": "Ulm"})], BOOK),
        ([call("book", {"days": 2, "city": "Ulm"})], [BOOK]),
        (
            [call("ping", {}), call("book", {"city": "Ulm", "days": 2}), call("book", {"city": "Bonn", "days": 2})],
            [{"name": "book", "arguments": {"city": "Bonn", "days": 2}}, BOOK, {"name": "ping", "arguments": {}}],
        ),
        ([call("heat", {"to": 20.0})], {"name": "heat", "arguments": {"to": 20}}),
        ([call("heat", {"rooms": [{"n": 1}]})], {"name": "heat", "arguments": {"rooms": [{"n": 1.0}]}}),
        ([call("heat", {"maybe": 1})], {"name": "heat", "arguments": {"maybe": 1.0}}),
        ([call("heat", {"maybe": None})], {"name": "heat", "arguments": {"maybe": None}}),
        (None, None),
        ([], []),
    ],
)
async def test_the_same_calls_pass(calls, reference):
    assert (await judge(calls, reference)).status is Status.PASSED


@pytest.mark.parametrize(
    ("calls", "reference", "says"),
    [
        ([call("ping", {})], BOOK, "ping is not the right tool"),
        ([call("book", {"city": "Bonn", "days": 2})], BOOK, "calls book with the wrong city"),
        ([call("book", {"city": "ulm", "days": 2})], BOOK, "calls book with the wrong city"),
        ([call("book", {"city": "Ulm", "days": 2.0})], BOOK, "calls book with the wrong days"),
        ([call(*free({"x": True}))], expect(free({"x": 1})), "calls heat with the wrong free"),
        ([call(*free({"x": "1"}))], expect(free({"x": 1})), "calls heat with the wrong free"),
        ([call(*free({"x": 1.0}))], expect(free({"x": 1})), "calls heat with the wrong free"),
        ([call(*free({"x": [1, 2]}))], expect(free({"x": [2, 1]})), "calls heat with the wrong free"),
        ([call(*free({"x": None}))], expect(free({})), "calls heat with the wrong free"),
        ([call("heat", {})], {"name": "heat", "arguments": {"to": 1}}, "calls heat with the wrong to"),
        ([call("ping", {})], None, "calls ping, but no call is right"),
        ([call("ping", {})], [], "calls ping, but no call is right"),
        ([call("ping", {}), call("ping", {})], {"name": "ping", "arguments": {}}, "makes 2 calls, not 1"),
        (
            [call("ping", {}), call("ping", {})],
            [BOOK, {"name": "ping", "arguments": {}}],
            "makes the same call more than once",
        ),
        (
            [call("book", {"city": "Bonn", "days": 1}), call("book", {"city": "Ulm", "days": 2})],
            [BOOK, {"name": "book", "arguments": {"city": "Kiel", "days": 1}}],
            "calls book with the wrong arguments",
        ),
    ],
)  # fmt: skip
async def test_other_calls_fail_and_the_reason_stays_hidden(calls, reference, says):
    verdict = await judge(calls, reference)
    assert (verdict.status, verdict.reason, verdict.safe_for_model) == (Status.FAILED, says, False)


async def test_a_missing_call_fails():
    assert (await judge(None, BOOK)).reason == "there is no tool call"


async def test_loose_comparison():
    config = {"strict": False}
    calls = [call("heat", {"free": {"x": 1.0, "s": " Two  words"}})]
    assert (
        await judge(calls, {"name": "heat", "arguments": {"free": {"x": 1, "s": "two WORDS "}}}, config=config)
    ).status is Status.PASSED
    assert (
        await judge(calls, {"name": "heat", "arguments": {"free": {"x": True, "s": "two words"}}}, config=config)
    ).status is Status.FAILED


async def test_arguments_override_the_reference_of_the_configuration():
    config = {"reference": BOOK}
    assert (await judge([call("ping", {})], config=config)).status is Status.FAILED
    assert (await judge([call("ping", {})], {"name": "ping", "arguments": {}}, config=config)).status is Status.PASSED
    assert (await judge([], None, config=config)).status is Status.PASSED


async def test_parts_that_combine_are_not_closed_apart():
    tools = [tool("f", {"a": {"type": "integer"}}, allOf=[{"properties": {"b": {"type": "integer"}}}])]
    assert (await judge([call("f", {"a": 1, "b": 2})], tools=tools)).status is Status.PASSED
    assert (await judge([call("f", {"a": 1, "c": 2})], tools=tools)).status is Status.FAILED


async def test_an_open_tool_takes_anything():
    tools = [tool("f", {}, additionalProperties=True), tool("g", {}, additionalProperties={"type": "integer"})]
    assert (await judge([call("f", {"a": 1})], tools=tools)).status is Status.PASSED
    assert (await judge([call("g", {"a": 1})], tools=tools)).status is Status.PASSED
    assert (await judge([call("g", {"a": "1"})], tools=tools)).status is Status.FAILED


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "objekt"},
        {"properties": None},
        {"properties": {"a": {"$ref": "http://127.0.0.1/x"}}},
        {"properties": {"a": {"$ref": "file:///etc/passwd"}}},
        {"description": "x" * 70_000},
        {"enum": [{1, 2}]},
    ],
)
async def test_a_tool_whose_schema_is_none_abstains(parameters):
    tools = [{"function": {"name": "f", "parameters": parameters}}]
    assert (await judge([call("f", {"a": 1})], tools=tools)).status is Status.ABSTAINED


@pytest.mark.parametrize("tools", [None, 5, [], [None], [{"function": 1}], [{"function": {"name": 1}}]])
async def test_without_tools_no_call_is_known(tools):
    assert (await judge([call("ping", {})], tools=tools)).reason == "ping is not one of the tools"


@pytest.mark.parametrize(
    "reference", [5, "book", [5], {"name": "book"}, [{"arguments": {}}], {"name": "b", "arguments": 5}]
)
async def test_a_reference_that_is_none_is_refused_and_abstains(reference):
    assert (await judge([call("ping", {})], reference)).cause is Cause.BAD_ARGS
    with pytest.raises(InvalidArgs):
        KIND.check_args({}, {"reference": reference})
    with pytest.raises(InvalidVerifier):
        KIND.compile_checked({"reference": reference})


@pytest.mark.parametrize("reference", [None, [], BOOK, [BOOK, BOOK]])
def test_references_are_accepted(reference):
    KIND.check_args({}, {"reference": reference})
