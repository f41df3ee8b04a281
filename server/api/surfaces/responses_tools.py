"""Reads the tools of `/v1/responses`: functions, in a flat shape. Called by `server.api.surfaces.responses_request`."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from server.api.chat_request import explain_invalid
from server.errors import InvalidRequest

_Text = Annotated[str, Meta(min_length=1)]


class FunctionTool(Struct, forbid_unknown_fields=True, rename={"async_": "async"}):
    """A function that may be called, in the flat shape of responses."""

    type: str
    name: _Text
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    output_schema: Any = None
    allowed_callers: list[str] | None = None
    defer_loading: bool | None = None
    async_: bool | None = None


def read_tool(tool: dict[str, Any], index: int) -> FunctionTool:
    """Read a tool. Raises: InvalidRequest, naming the field."""
    where, kind = f"tools[{index}]", tool.get("type")
    if kind != "function":
        message = f"The tool {kind!r} is not supported: nothing runs tools here but the client; use functions."
        raise InvalidRequest(message, param=f"{where}.type", code="unsupported_tool")
    try:
        made = msgspec.convert(tool, FunctionTool)
    except msgspec.ValidationError as error:
        wrong = explain_invalid(error)
        param = f"{where}.{wrong.param}" if wrong.param else where
        raise InvalidRequest(f"{where}: {wrong.message}", param=param, code=wrong.code) from None
    others = {"allowed_callers": made.allowed_callers not in (None, ["direct"]), "defer_loading": made.defer_loading}
    for name, asks in (*others.items(), ("async", made.async_)):
        if asks:
            raise InvalidRequest(f"{name} is not supported: functions are called by the model.", f"{where}.{name}")
    return made


def to_chat_tool(tool: FunctionTool) -> dict[str, Any]:
    """Say in chat's shape what may be called."""
    given = {name: getattr(tool, name) for name in ("name", "description", "parameters", "strict")}
    return {"type": "function", "function": {name: value for name, value in given.items() if value is not None}}


def read_tool_choice(
    choice: str | dict[str, Any] | None, tools: Sequence[FunctionTool]
) -> tuple[str | dict[str, Any] | None, set[str] | None]:
    """Read chat's `tool_choice`, and which tools may be called where that is said too. Raises: InvalidRequest."""
    known = [tool.name for tool in tools]
    if choice is None or isinstance(choice, str):
        if choice not in (None, "none", "auto", "required"):
            raise InvalidRequest("tool_choice is none, auto, required or a function.", param="tool_choice")
        return choice, None
    if choice.get("type") == "function":
        if choice.get("name") not in known:
            raise InvalidRequest(f"There is no function {choice.get('name')!r} in tools.", param="tool_choice.name")
        return {"type": "function", "function": {"name": choice["name"]}}, None
    if choice.get("type") == "allowed_tools":
        listed = choice.get("tools")
        names = [one.get("name") for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []
        if not names or not all(name in known for name in names) or choice.get("mode") not in ("auto", "required"):
            raise InvalidRequest(
                "allowed_tools needs a mode (auto or required) and functions that stand in tools.", param="tool_choice"
            )
        return choice["mode"], {str(name) for name in names}
    raise InvalidRequest(
        f"The tool_choice {choice.get('type')!r} is not supported: there are only functions.",
        param="tool_choice.type",
        code="unsupported_tool",
    )
