"""Checks of a chat request that no single field's type can say: what refers to what, and what is refused as a whole.

Called by `server.api.chat_request`. The reasons come from the table in `server.api.fields`.
"""

from collections.abc import Sequence
from typing import Any

from server.api import chat_shapes as shapes
from server.api.fields import NESTED, Use
from server.errors import InvalidRequest
from server.settings import LimitSettings

_DATA_IMAGE = "data:image/"
_REFUSED = {shape: table.refused for shape, table in NESTED.items() if table.refused}
_REFUSED_IN_ANSWERS = {
    name: field.reason for name, field in NESTED[shapes.AssistantMessage].fields.items() if field.use is Use.REFUSED
}


def check_messages(messages: Sequence[Any], limits: LimitSettings, *, images: bool) -> None:
    """Check a conversation: its length, its parts, and that calls and tools' messages belong together.

    `images` says whether the model reads them.

    Raises: InvalidRequest, naming the field.
    """
    if len(messages) > limits.max_messages:
        raise InvalidRequest(f"At most {limits.max_messages} messages are taken.", param="messages")
    image_count = 0
    known: frozenset[str] = frozenset()
    unanswered: set[str] = set()
    for index, message in enumerate(messages):
        shape = type(message)
        if shape is shapes.ToolMessage:
            if message.tool_call_id not in known:
                raise InvalidRequest(
                    f"{message.tool_call_id[:80]!r} answers no call of the assistant's message before it.",
                    param=f"messages[{index}].tool_call_id",
                )
            unanswered.discard(message.tool_call_id)
        else:
            if unanswered:
                raise _unanswered(unanswered, index)
            if shape is shapes.AssistantMessage:
                known = _check_answer(message, f"messages[{index}]")
                unanswered = set(known)
            elif shape is shapes.FunctionMessage:
                raise _unsupported(shape, f"messages[{index}].role", "a function's message")
            else:
                known = frozenset()
        if type(message.content) is list:
            image_count += _check_parts(message, f"messages[{index}].content", limits, images=images)
            if image_count > limits.max_images:
                raise InvalidRequest(f"At most {limits.max_images} images are taken.", param="messages")
    if unanswered:
        raise _unanswered(unanswered, len(messages))


def check_tools(tools: Sequence[Any], choice: Any) -> None:
    """Check that all tools are functions, and that the choice is one of them.

    Raises: InvalidRequest, naming the field.
    """
    for index, tool in enumerate(tools):
        if type(tool) is shapes.CustomTool:
            raise _unsupported(shapes.CustomTool, f"tools[{index}].type", "a custom tool")
    if choice is None:
        return
    if (shape := type(choice)) in _REFUSED:
        raise _unsupported(shape, "tool_choice.type", "this choice")
    if choice in ("none", "auto"):
        return
    if not tools:
        raise InvalidRequest("tool_choice needs tools to choose from.", param="tool_choice")
    if shape is shapes.NamedToolChoice:
        _check_named(tools, choice, "tool_choice")
    elif shape is shapes.AllowedToolsChoice:
        for index, allowed in enumerate(choice.allowed_tools.tools):
            _check_named(tools, allowed, f"tool_choice.allowed_tools.tools[{index}]")


def _check_named(tools: Sequence[Any], choice: Any, place: str) -> None:
    if type(choice) is shapes.CustomToolChoice:
        raise _unsupported(shapes.CustomToolChoice, f"{place}.type", "a custom tool")
    name = choice.function.name
    if all(tool.function.name != name for tool in tools):
        raise InvalidRequest(f"The function {name[:80]!r} is not among the tools.", param=f"{place}.function.name")


def check_format(answer_format: Any) -> None:
    """Check that a format has its schema.

    Raises: InvalidRequest, naming the field.
    """
    if type(answer_format) is shapes.SchemaFormat and answer_format.json_schema.schema is None:
        raise InvalidRequest("Missing field: a JSON schema.", param="response_format.json_schema.schema")


def _check_answer(message: shapes.AssistantMessage, place: str) -> frozenset[str]:
    """Check an assistant's message, and give the ids of its calls."""
    for name, reason in _REFUSED_IN_ANSWERS.items():
        if getattr(message, name) is not None:
            text = f"{place}.{name} is not supported: {reason}."
            raise InvalidRequest(text, param=f"{place}.{name}", code="unsupported_field")
    ids = []
    for index, call in enumerate(message.tool_calls or ()):
        if type(call) is shapes.CustomToolCall:
            raise _unsupported(shapes.CustomToolCall, f"{place}.tool_calls[{index}].type", "a custom tool's call")
        ids.append(call.id)
    return frozenset(ids)


def _check_parts(message: Any, place: str, limits: LimitSettings, *, images: bool) -> int:
    """Check the parts of a message, and count its images."""
    count = 0
    for index, part in enumerate(message.content):
        shape, at = type(part), f"{place}[{index}]"
        if shape is shapes.TextPart:
            continue
        if shape in _REFUSED:
            raise _unsupported(shape, f"{at}.type", "this part")
        if shape is shapes.RefusalPart:
            if type(message) is not shapes.AssistantMessage:
                raise InvalidRequest("A refusal may stand only in an assistant's message.", param=f"{at}.type")
            continue
        if type(message) is not shapes.UserMessage:
            raise InvalidRequest("An image may stand only in a user's message.", param=f"{at}.type")
        if not images:
            text = "The model that is served here does not read images."
            raise InvalidRequest(text, param=f"{at}.type", code="unsupported_field")
        _check_url(part.image_url.url, f"{at}.image_url.url", limits)
        count += 1
    return count


def _check_url(url: str, param: str, limits: LimitSettings) -> None:
    if url.startswith(_DATA_IMAGE) and ";base64," in url[:80]:
        return
    if limits.remote_images and url.startswith(("https://", "http://")):
        return
    what = "an address or " if limits.remote_images else ""
    raise InvalidRequest(f"An image is {what}a data:image/...;base64, URL.", param=param)


def _unsupported(shape: type, param: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{param}: {what} is not supported: {_REFUSED[shape]}.", param, "unsupported_field")


def _unanswered(ids: set[str], index: int) -> InvalidRequest:
    named = ", ".join(repr(one[:80]) for one in sorted(ids)[:4])
    message = f"An assistant's calls must be followed by the tools' messages that answer them. Not answered: {named}."
    return InvalidRequest(message, param=f"messages[{index - 1}]")
