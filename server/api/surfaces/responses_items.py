"""Turns the items of `/v1/responses` into chat messages and back. Pure; called by the other modules of that surface.

An episode is logged as a chat, whatever surface it came from, so that training and the gate can use it. Ids of items
are made from their episode's, so that they can be found again.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from server.api.chat_request import explain_invalid
from server.domain import Episode
from server.errors import InvalidRequest

Item = dict[str, Any]
Message = dict[str, Any]
_Shape = TypeVar("_Shape")


class _MessageItem(Struct, forbid_unknown_fields=True, kw_only=True):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[dict[str, Any]]
    type: str | None = None
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class _TextPart(Struct, forbid_unknown_fields=True, kw_only=True):
    type: str
    text: str
    annotations: Any = None
    logprobs: Any = None
    parsed: Any = None  # SDKs may send their own reading back
    prompt_cache_breakpoint: Any = None


class _RefusalPart(Struct, forbid_unknown_fields=True, kw_only=True):
    type: str
    refusal: str


class _ImagePart(Struct, forbid_unknown_fields=True, kw_only=True):
    type: str
    image_url: str | None = None
    file_id: str | None = None
    detail: Literal["auto", "low", "high", "original"] | None = None
    prompt_cache_breakpoint: Any = None


class _CallItem(Struct, forbid_unknown_fields=True, kw_only=True, rename={"async_": "async"}):
    type: str
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None
    namespace: str | None = None
    caller: Any = None
    async_: Any = None
    created_by: str | None = None
    parsed_arguments: Any = None


class _OutputItem(Struct, forbid_unknown_fields=True, kw_only=True):
    type: str
    call_id: str
    output: str | list[dict[str, Any]]
    id: str | None = None
    status: str | None = None
    name: str | None = None
    namespace: str | None = None
    caller: Any = None
    created_by: str | None = None


def is_reference(item: Mapping[str, Any]) -> bool:
    """Say whether an item stands for another one, by its id."""
    return item.get("type") == "item_reference" or (item.get("type") is None and set(item) <= {"id", "type"})


def to_messages(items: Sequence[Item], before: Sequence[Message] = ()) -> list[Message]:
    """Turn items into messages, after those of the conversation so far.

    Raises: InvalidRequest, naming the item.
    """
    messages = list(before)
    for index, item in enumerate(items):
        _add_item(messages, item, f"input[{index}]")
    return messages


def _add_item(messages: list[Message], item: Item, where: str) -> None:
    kind = item.get("type") or "message"
    if kind == "message":
        _add_message(messages, _read(item, _MessageItem, where), where)
    elif kind == "function_call":
        call = _read(item, _CallItem, where)
        function = {"name": call.name, "arguments": call.arguments}
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        last = messages[-1]
        calls = [*last.get("tool_calls", ()), {"id": call.call_id, "type": "function", "function": function}]
        messages[-1] = {**last, "tool_calls": calls}
    elif kind == "function_call_output":
        output = _read(item, _OutputItem, where)
        content = _read_content(output.output, f"{where}.output")
        messages.append({"role": "tool", "tool_call_id": output.call_id, "content": content})
    elif kind != "reasoning":
        raise InvalidRequest(
            f"Items of type {kind!r} are not supported: there are messages, function calls and their outputs.",
            param=f"{where}.type",
            code="unsupported_item",
        )


def _add_message(messages: list[Message], item: _MessageItem, where: str) -> None:
    content = _read_content(item.content, f"{where}.content")
    if item.role != "assistant":
        messages.append({"role": item.role, "content": content})
        return
    if not isinstance(content, str):
        if any(part["type"] != "text" for part in content):
            raise InvalidRequest("An assistant's message has text only.", param=f"{where}.content")
        content = "".join(part["text"] for part in content)
    last = messages[-1] if messages else {}
    if last.get("role") == "assistant" and last.get("content") is None:  # the text of a turn whose calls came first
        messages[-1] = {**last, "content": content}
    else:
        messages.append({"role": "assistant", "content": content})


def _read_content(content: str | list[dict[str, Any]], where: str) -> str | list[dict[str, Any]]:
    """Read parts; a single text is plain text, which every template knows."""
    if isinstance(content, str):
        return content
    parts = [_read_part(part, f"{where}[{index}]") for index, part in enumerate(content)]
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _read_part(part: dict[str, Any], where: str) -> dict[str, Any]:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": _read(part, _TextPart, where).text}
    if kind == "refusal":
        return {"type": "text", "text": _read(part, _RefusalPart, where).refusal}
    if kind != "input_image":
        raise InvalidRequest(
            f"Parts of type {kind!r} are not supported: there are input_text, output_text, refusal and input_image.",
            param=f"{where}.type",
            code="unsupported_part",
        )
    image = _read(part, _ImagePart, where)
    if image.file_id is not None or image.image_url is None:
        raise InvalidRequest("There are no files here: send image_url.", param=f"{where}.file_id")
    url = {"url": image.image_url, "detail": image.detail} if image.detail else {"url": image.image_url}
    return {"type": "image_url", "image_url": url}


def _read(given: dict[str, Any], shape: type[_Shape], where: str) -> _Shape:
    try:
        return msgspec.convert(given, shape)
    except msgspec.ValidationError as error:
        wrong = explain_invalid(error)
        param = f"{where}.{wrong.param}" if wrong.param else where
        raise InvalidRequest(f"{where}: {wrong.message}", param=param, code=wrong.code) from None


def suffix_of(episode_id: str) -> str:
    """Read what the ids of a response and of its items share with that of their episode."""
    return episode_id.partition("_")[2]


def call_id(call: Mapping[str, Any], index: int, suffix: str) -> str:
    """Read a call's id, or make one where the engine gave none."""
    return call.get("id") or f"call_{suffix}_{index}"


def answer_message(episode: Episode) -> Message:
    """Read the answer of an episode as a message of the conversation that goes on; every call has an id."""
    answer = episode.attempts[-1].answer
    message: Message = {"role": "assistant", "content": answer.get("content")}
    if calls := answer.get("tool_calls"):
        suffix = suffix_of(episode.id)
        message["tool_calls"] = [
            {"id": call_id(call, index, suffix), "type": "function", "function": dict(call["function"])}
            for index, call in enumerate(calls)
        ]
    return message


def to_items(messages: Sequence[Message], suffix: str) -> list[Item]:
    """Turn logged messages into the items that they would be asked with."""
    return [item for index, message in enumerate(messages) for item in _items_of(message, f"{suffix}_{index}")]


def _items_of(message: Message, suffix: str) -> Iterable[Item]:
    role, content = message["role"], message.get("content")
    if role == "tool":
        output = content if isinstance(content, str) else [_to_part(part) for part in content or ()]
        names = {"id": f"fco_{suffix}", "type": "function_call_output", "status": "completed"}
        yield {**names, "call_id": message["tool_call_id"], "output": output}
        return
    message_names = {"id": f"msg_{suffix}", "type": "message", "status": "completed", "role": role}
    if role != "assistant":
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        yield {**message_names, "content": [_to_part(part) for part in parts or ()]}
        return
    if content is not None:
        yield {**message_names, "content": [text_part(content)]}
    for index, call in enumerate(message.get("tool_calls") or ()):
        names = {"id": f"fc_{suffix}_{index}", "type": "function_call", "status": "completed"}
        yield {**names, "call_id": call["id"], **call["function"]}


def text_part(text: str, logprobs: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Make the part of an answer that holds its text."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def _to_part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "input_text", "text": part["text"]}
    image = part["image_url"]
    return {"type": "input_image", "image_url": image["url"], "detail": image.get("detail", "auto")}
