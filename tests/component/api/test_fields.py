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
TEXT = {"type": "text", "text": "What is this?"}
REFUSAL = {"type": "refusal", "refusal": "No."}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s"}}
CUSTOM_CALL = {"id": "c", "type": "custom", "custom": {"name": "c", "input": ""}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TOOL_PARAMETERS = "tools[0].function.parameters"
TOOL = {"type": "function", "function": {"name": "f"}}


def parse(**fields):
    return parse_chat(json.dumps({"model": "m", "messages": ASK, **fields}).encode(), LIMITS)


def refuse(**fields) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    return caught.value


def allow(*tools, mode="auto"):
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}


def called(*ids):
    """Make an assistant's message with calls."""
    calls = [{"id": one, "type": "function", "function": {"name": "f", "arguments": "{}"}} for one in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def answered(call_id):
    return {"role": "tool", "tool_call_id": call_id, "content": "4"}


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


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL, {"type": "custom", "custom": {"name": "c"}}]}, "tools[1].type"),
        ({"tools": [TOOL], "tool_choice": {"type": "custom", "custom": {"name": "c"}}}, "tool_choice.type"),
        (
            {"tools": [TOOL], "tool_choice": allow({"type": "custom", "custom": {"name": "c"}})},
            "tool_choice.allowed_tools.tools[0].type",
        ),
        ({"messages": [{"role": "function", "name": "f", "content": "4"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages[0].audio"),
        ({"messages": [{"role": "assistant", "function_call": {}}]}, "messages[0].function_call"),
        ({"messages": [{"role": "assistant", "tool_calls": [CUSTOM_CALL]}]}, "messages[0].tool_calls[0].type"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [TEXT, {"type": "input_audio", "input_audio": {}}]}]},
            "messages[0].content[1].type",
        ),
    ],
)
def test_refused_shapes_are_refused_by_name_with_their_reason(fields, param):
    error = refuse(**fields)
    assert (error.param, error.code) == (param, "unsupported_field")


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
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"seed": 2**64}, "seed"),
        ({"top_k": 2**31}, "top_k"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
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
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"metadata": {str(number): "v" for number in range(17)}}, "metadata"),
        ({"user": "u" * 513}, "user"),
        ({"logit_bias": {"17": 101}}, "logit_bias"),
        ({"logit_bias": {"seventeen": 1}}, "logit_bias"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": "yes"}}]}, "tools[0].function.strict"),
        ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{**TOOL, "cache": 1}]}, "tools[0].cache"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes", "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": {**TOOL, "function": {"name": "g"}}, "tools": [TOOL]}, "tool_choice.function.name"),
        ({"tool_choice": {"type": "function"}, "tools": [TOOL]}, "tool_choice.function"),
        (
            {"tool_choice": allow(TOOL, {"type": "function", "function": {"name": "g"}}), "tools": [TOOL]},
            "tool_choice.allowed_tools.tools[1].function.name",
        ),
        ({"tool_choice": allow(), "tools": [TOOL]}, "tool_choice.allowed_tools.tools"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {**SCHEMA, "json_schema": {"schema": {}}}}, "response_format.json_schema.name"),
        ({"response_format": SCHEMA}, "response_format.json_schema.schema"),
        ({"messages": [{"role": "user", "content": "x", "colour": "red"}]}, "messages[0].colour"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [REFUSAL]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "system", "content": [IMAGE]}]}, "messages[0].content[0].type"),
        ({"messages": [*ASK, {"role": "tool", "content": "4"}]}, "messages[1].tool_call_id"),
        ({"messages": [*ASK, {"role": "tool", "content": "4", "tool_call_id": "c"}]}, "messages[1].tool_call_id"),
        ({"messages": [*ASK, called("c"), *ASK]}, "messages[1]"),
        ({"messages": [*ASK, called("c", "d"), answered("c")]}, "messages[2]"),
        ({"messages": [*ASK, called("c"), answered("c"), *ASK, answered("c")]}, "messages[4].tool_call_id"),
        ({"messages": [*ASK, {"role": "assistant", "tool_calls": [{"id": "c"}]}]}, "messages[1].tool_calls[0].type"),
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


def sent(message, **more):
    """Parse a request with one message, and give that message as the engine gets it."""
    return parse(messages=[message], **more).engine_body["messages"][0]


def test_a_message_of_a_previous_answer_is_taken_as_the_sdk_dumps_it():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    nothing = {"refusal": None, "annotations": None, "audio": None, "function_call": None}
    dumped = {"role": "assistant", "content": None, **nothing, "tool_calls": [{**call, "index": 0}]}
    messages = [*ASK, dumped, answered("c")]
    parsed = parse(messages=messages)
    plain = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert parsed.engine_body["messages"] == [*ASK, plain, answered("c")]
    assert parsed.logged["messages"] == messages


def test_several_calls_may_be_answered_in_any_order():
    messages = [*ASK, called("c", "d"), answered("d"), answered("c")]
    assert parse(messages=messages).engine_body["messages"] == messages


def test_thoughts_and_names_are_passed_through():
    message = {"role": "assistant", "content": "4", "reasoning_content": "2 and 2", "name": "Ann"}
    assert sent(message) == message


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "developer", "content": "Be brief."}, {"role": "system", "content": "Be brief."}),
        (
            {"role": "user", "content": [{**TEXT, "prompt_cache_breakpoint": {"mode": "explicit"}}]},
            {"role": "user", "content": [TEXT]},
        ),
        ({"role": "assistant", "refusal": "I will not."}, {"role": "assistant", "content": "I will not."}),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
        ),
        ({"role": "user", "content": "x", "name": None}, {"role": "user", "content": "x"}),
        ({"role": "assistant", "content": "x", "tool_calls": []}, {"role": "assistant", "content": "x"}),
    ],
)
def test_messages_are_given_to_engines_as_they_take_them(message, expected):
    assert sent(message) == expected


class TestImages:
    @staticmethod
    def ask(*parts, images=True, **limits):
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": list(parts)}]}).encode()
        return parse_chat(body, LimitSettings(**limits), images=images).engine_body["messages"][0]["content"]

    def test_they_reach_a_model_that_reads_them(self):
        assert self.ask(TEXT, IMAGE) == [TEXT, IMAGE]
        original = {"type": "image_url", "image_url": {**IMAGE["image_url"], "detail": "original"}}
        assert self.ask(original)[0]["image_url"]["detail"] == "high"

    @pytest.mark.parametrize(
        "url",
        ["https://inner/secret", "http://169.254.169.254/", "file:///etc/passwd", "data:text/html;base64,AA", "AA"],
    )
    def test_an_address_is_refused_for_the_engine_would_fetch_it(self, url):
        with pytest.raises(InvalidRequest) as caught:
            self.ask({"type": "image_url", "image_url": {"url": url}})
        assert caught.value.param == "messages[0].content[0].image_url.url"

    def test_an_address_may_be_allowed_but_never_a_file(self):
        remote = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
        assert self.ask(remote, remote_images=True) == [remote]
        with pytest.raises(InvalidRequest):
            self.ask({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, remote_images=True)

    def test_there_are_only_so_many(self):
        assert len(self.ask(IMAGE, IMAGE, max_images=2)) == 2
        with pytest.raises(InvalidRequest):
            self.ask(IMAGE, IMAGE, IMAGE, max_images=2)


def test_nulls_of_tools_and_formats_are_left_out_for_engines():
    function = {"name": "math.add", "description": None, "parameters": {"default": None}, "strict": None}
    schema = {"name": "s", "schema": {"const": None}, "strict": None}
    body = parse(
        tools=[{"type": "function", "function": function}],
        tool_choice={"type": "function", "function": {"name": "math.add"}},
        response_format={"type": "json_schema", "json_schema": schema},
    ).engine_body
    assert body["tools"][0]["function"] == {"name": "math.add", "parameters": {"default": None}}
    assert body["response_format"]["json_schema"] == {"name": "s", "schema": {"const": None}}


def test_of_the_allowed_tools_engines_get_only_those():
    other = {"type": "function", "function": {"name": "g"}}
    parsed = parse(tools=[TOOL, other], tool_choice=allow(other, mode="required"))
    assert (parsed.engine_body["tools"], parsed.engine_body["tool_choice"]) == ([other], "required")
    assert parsed.logged["tools"] == [TOOL, other]


@pytest.mark.parametrize("fields", [{"tool_choice": "auto"}, {"tool_choice": "none"}, {"tools": []}])
def test_without_tools_nothing_of_them_reaches_the_engine(fields):
    assert parse(**fields, parallel_tool_calls=False).engine_body == parse().engine_body


class TestUnknownFields:
    """What a task with `unknown_fields: ignore` gets."""

    @staticmethod
    def ignore(**fields):
        body = json.dumps({"model": "m", "messages": ASK, **fields}).encode()
        return parse_chat(body, LIMITS, ignore_unknown=True)

    def test_they_are_dropped_everywhere(self):
        parsed = self.ignore(
            foo={"bar": 1},
            messages=[{"role": "user", "content": [{**TEXT, "cache": True}], "mood": "good"}],
            tools=[{"type": "function", "function": {"name": "f", "parameters": {"kept": 1}, "x": 1}, "y": 2}],
            stream=True,
            stream_options={"include_usage": True, "z": 1},
            retry={"tries": 9, "max_retries": 1},
            verifiers=[{"name": "v", "args": {"kept": 1}, "w": 1}, "four"],
        )
        assert parsed.engine_body["messages"] == [{"role": "user", "content": [TEXT]}]
        assert parsed.engine_body["tools"] == [
            {"type": "function", "function": {"name": "f", "parameters": {"kept": 1}}}
        ]
        assert parsed.logged.keys() == {"model", "messages", "tools", "stream", "stream_options"}
        assert parsed.request.verifiers[0].args == {"kept": 1}
        assert (parsed.request.retry.max_retries, parsed.request.stream_options.include_usage) == (1, True)

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"temperature": 9, "foo": 1}, "temperature"),
            ({"messages": [{"role": "robot"}]}, "messages[0].role"),
            ({"messages": {"a": 1}}, "messages"),
            ({"messages": [3]}, "messages[0]"),
            ({"audio": {}}, "audio"),
        ],
    )
    def test_what_is_known_is_checked_all_the_same(self, fields, param):
        with pytest.raises(InvalidRequest) as caught:
            self.ignore(**fields)
        assert caught.value.param == param


def test_a_number_that_no_float_holds_is_named_as_such():
    with pytest.raises(InvalidRequest, match="out of range"):
        parse_chat(b'{"model": "m", "temperature": 1e999}', LIMITS)
