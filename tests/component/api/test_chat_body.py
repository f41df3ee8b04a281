"""What of a conversation reaches the engine."""

import json

import pytest

from server.api.chat_body import MALFORMED, to_engine_messages
from tests.fixtures.api import make_api


def call_with(arguments: str) -> dict:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def sent_arguments(arguments: str) -> str:
    (message,) = to_engine_messages([call_with(arguments)])
    return message["tool_calls"][0]["function"]["arguments"]


@pytest.mark.parametrize("arguments", ['{"a": 1}', "{}", '{"a": {"b": [1]}}'])
def test_arguments_that_are_an_object_pass_untouched(arguments):
    assert sent_arguments(arguments) == arguments


@pytest.mark.parametrize("arguments", ['": integer, "', "false", "[1]", '{"a": ', "null", "😀"])
def test_other_arguments_are_shown_as_what_they_were(arguments):
    assert json.loads(sent_arguments(arguments)) == {MALFORMED: arguments}


def test_no_arguments_are_an_empty_object():
    assert sent_arguments("") == sent_arguments(" ") == "{}"


async def test_a_client_may_show_the_model_its_malformed_call():
    api = make_api("4")
    history = [
        {"role": "user", "content": "2+2?"},
        call_with("not json"),
        {"role": "tool", "tool_call_id": "call_1", "content": "invalid arguments, try again"},
    ]
    answer = await api.chat(messages=history)
    assert answer.status == 200
    (asked,) = api.engine.calls
    assert json.loads(asked.body["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {MALFORMED: "not json"}
    assert api.logged.request["messages"] == history
