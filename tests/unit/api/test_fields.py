import ast
import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from server.api.chat_request import ChatRequest, parse_chat
from server.api.fields import ENGINE_FIELDS, FIELDS, OUR_FIELDS, SAMPLING_DEFAULTS, Use
from server.errors import InvalidRequest
from server.settings import LimitSettings

LIMITS = LimitSettings(max_messages=5, max_retries=3)
ASK = [{"role": "user", "content": "2+2?"}]
TOOL_PARAMETERS = "tools[0].function.parameters"
TOOL = {"type": "function", "function": {"name": "f"}}


def parse(**fields):
    return parse_chat(json.dumps({"model": "m", "messages": ASK, **fields}).encode(), LIMITS)


def refuse(**fields) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    return caught.value


def read_openai_fields() -> set[str]:
    """Read the fields of a chat request from the source of the SDK: importing it takes a second."""
    path = Path(find_spec("openai").origin).parent / "types" / "chat" / "completion_create_params.py"
    classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    (base,) = [node for node in classes if node.name == "CompletionCreateParamsBase"]
    return {node.target.id for node in base.body if isinstance(node, ast.AnnAssign)}


def test_every_field_of_openai_and_of_the_parser_is_in_the_table():
    openai = read_openai_fields() | {"stream"}
    assert openai <= set(FIELDS)
    assert list(ChatRequest.__struct_fields__) == list(FIELDS)
    assert set(FIELDS) - openai == {"top_k", "min_p", "repetition_penalty", *OUR_FIELDS}


def test_every_field_has_a_reason():
    assert [name for name, field in FIELDS.items() if not field.reason] == []


def test_only_the_allow_list_reaches_the_engine():
    given = {name: None for name in FIELDS if name not in ("model", "messages")}
    given |= {
        "tools": [TOOL],
        "stream": True,
        "user": "u",
        "metadata": {"a": "b"},
        "seed": 3,
        "task": "t",
        "store": False,
    }
    body = parse(**given).engine_body
    assert set(body) == {"messages", "tools", "seed", *SAMPLING_DEFAULTS}
    assert set(body) <= set(ENGINE_FIELDS)


def test_sampling_is_sent_in_full():
    assert parse().engine_body == {"messages": ASK, **SAMPLING_DEFAULTS}
    assert parse(temperature=0, top_p=0.5).engine_body == {
        "messages": ASK, **SAMPLING_DEFAULTS, "temperature": 0, "top_p": 0.5
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 6),
    ],
)
def test_the_old_name_of_the_limit_is_understood(given, sent):
    body = parse(**given).engine_body
    assert (body["max_completion_tokens"], "max_tokens" in body) == (sent, False)


def test_what_is_ours_is_not_logged_as_the_clients_request():
    logged = parse(task="t", verifiers=[], verify="off", retry={"max_retries": 1}, user="u", seed=None).logged
    assert logged == {"model": "m", "messages": ASK, "user": "u", "seed": None}


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.use is Use.REFUSED])
def test_refused_fields_are_refused_by_name_with_their_reason(name):
    error = refuse(**{name: {"some": "thing"}})
    assert (error.param, error.code) == (name, "unsupported_field")
    assert FIELDS[name].reason in error.message
    assert parse(**{name: None}).engine_body == parse().engine_body


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.use is Use.IGNORED])
def test_ignored_fields_are_ignored(name):
    assert parse(**{name: "whatever"}).engine_body == parse().engine_body


def test_harmless_values_of_refused_fields_pass():
    assert parse(modalities=["text"], functions=[]).engine_body == parse().engine_body
    assert refuse(modalities=["text", "audio"]).param == "modalities"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"foo": 1}, "foo"),
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ASK * 6}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [*ASK, {"role": "user", "content": None}]}, "messages[1].content"),
        ({"messages": [*ASK, {"role": "user"}]}, "messages[1].content"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"n": 99}, "n"),
        ({"n": 0}, "n"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"seed": 2**64}, "seed"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"tools": [{"type": "custom"}]}, "tools[0]"),
        ({"tools": [TOOL, {"type": "function", "function": {}}]}, "tools[1].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": "x"}}]}, TOOL_PARAMETERS),
        ({"verify": "maybe"}, "verify"),
        ({"verifiers": "v"}, "verifiers"),
        ({"verifiers": ["v", {"nam": "v"}]}, "verifiers[1].nam"),
        ({"verifiers": [{"name": "v", "args": []}]}, "verifiers[0].args"),
        ({"retry": {"max_retries": -1}}, "retry.max_retries"),
        ({"retry": {"max_retries": 4}}, "retry.max_retries"),
        ({"retry": {"max_seconds": 0}}, "retry.max_seconds"),
        ({"retry": {"on_failure": "explode"}}, "retry.on_failure"),
        ({"retry": {"tries": 1}}, "retry.tries"),
        ({"metadata": {"a": 1}}, "metadata[...]"),
    ],
)  # fmt: skip
def test_wrong_fields_are_named(fields, param):
    error = refuse(**fields)
    assert error.param == param
    assert error.message


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b'{"a":' * 5000, b"[" * 100_000, b'{"model": NaN}'],
)
def test_what_is_not_a_json_object_is_a_bad_request(body):
    with pytest.raises(InvalidRequest):
        parse_chat(body, LIMITS)


def test_a_message_of_a_previous_answer_is_taken_as_the_sdk_dumps_it():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    dumped = {"role": "assistant", "content": None, "refusal": None, "annotations": None, "tool_calls": [call]}
    messages = [*ASK, dumped, {"role": "tool", "tool_call_id": "c", "content": "4"}]
    assert parse(messages=messages).engine_body["messages"] == messages
