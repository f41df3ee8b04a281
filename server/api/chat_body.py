"""Turns the messages and tools of a chat request into what engines take. Called by `server.api.chat_request`.

It is given what was checked, and gives on only what `server.api.fields` sends to the engine. It never changes what it
is given: the log has the request as it was.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from server.api import chat_shapes as shapes
from server.api.fields import NESTED, Use

_SENT = frozenset({Use.ENGINE, Use.IMAGES})
_MESSAGES = (shapes.SystemMessage, shapes.UserMessage, shapes.AssistantMessage, shapes.ToolMessage)


def _sent_fields(shape: type) -> frozenset[str]:
    return frozenset(name for name, field in NESTED[shape].fields.items() if field.use in _SENT)


_MESSAGE_FIELDS = frozenset().union(*[_sent_fields(shape) for shape in _MESSAGES]) - {"refusal"}
_CALL_FIELDS = _sent_fields(shapes.FunctionToolCall)
_decode_arguments = msgspec.json.Decoder(dict[str, Any]).decode
MALFORMED = "malformed_arguments"
"""The name under which a model is shown arguments of its own that are no JSON object."""
_PLAIN = frozenset({"role", "content"})
_ROLES = {"developer": "system"}
"""Roles that templates of open models do not know, and drop silently."""


def to_engine_messages(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turn messages into what engines take."""
    return [
        message
        if message.keys() == _PLAIN and type(message["content"]) is str and message["role"] not in _ROLES
        else _to_engine_message(message)
        for message in messages
    ]


def _to_engine_message(message: Mapping[str, Any]) -> dict[str, Any]:
    sent = {name: value for name, value in message.items() if name in _MESSAGE_FIELDS and value is not None}
    sent["role"] = _ROLES.get(message["role"], message["role"])
    content = message.get("content")
    if isinstance(content, list):
        content = [_to_engine_part(part) for part in content]
    sent["content"] = message.get("refusal") if content in (None, []) else content
    if sent.get("tool_calls"):
        sent["tool_calls"] = [_to_engine_call(call) for call in sent["tool_calls"]]
    else:
        sent.pop("tool_calls", None)
    return sent


def _to_engine_part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "refusal":
        return {"type": "text", "text": part["refusal"]}
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    image = without_nulls(part["image_url"])
    if image.get("detail") == "original":
        image["detail"] = "high"
    return {"type": "image_url", "image_url": image}


def _to_engine_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a call of the history into one that engines take: they refuse arguments that are no JSON object.

    OpenAI takes any string there, and a client that asks again shows the model just what it wrote.
    """
    sent = _only(call, _CALL_FIELDS)
    arguments = sent["function"]["arguments"]
    try:
        _decode_arguments(arguments.strip() or "{}")
    except msgspec.DecodeError:
        arguments = msgspec.json.encode({MALFORMED: arguments}).decode()
    return {**sent, "function": {**sent["function"], "arguments": arguments.strip() or "{}"}}


def _only(fields: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name in names}


def choose_tools(body: dict[str, Any]) -> None:
    """Turn the tools of a body, and the choice among them, into what engines take.

    Some refuse a null where OpenAI allows one, and none knows `allowed_tools`: it gets only those.
    """
    tools, choice = body["tools"], body.get("tool_choice")
    if isinstance(choice, dict) and choice["type"] == "allowed_tools":
        allowed = choice["allowed_tools"]
        names = {tool["function"]["name"] for tool in allowed["tools"]}
        tools = [tool for tool in tools if tool["function"]["name"] in names]
        body["tool_choice"] = allowed["mode"]
    body["tools"] = [{"type": "function", "function": _without_null_fields(tool["function"])} for tool in tools]


def without_nulls(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is null, here and in the object below; a schema is left as it is."""
    return {
        name: _without_null_fields(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if value is not None
    }


def _without_null_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
