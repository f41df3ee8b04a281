"""Tool calls, read from an answer. Called by the `function_call` kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verifiers.answers import MAX_JSON_CHARS, NotJson, read_json

MAX_CALLS = 64


class BadCall(ValueError):
    """The answer's calls cannot be read, or break a tool's schema; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call: the function's name, its arguments, and how many characters they were."""

    name: str
    arguments: Mapping[str, Any]
    size: int = 0


def read_calls(answer: Mapping[str, Any]) -> list[Call]:
    """Read the tool calls of an answer; [] where there are none.

    Raises: BadCall for calls that are not in OpenAI's shape, whose arguments are not one strict JSON object, or that
    are too many or too long all together.
    """
    calls = answer.get("tool_calls")
    if calls is None:
        return []
    if not isinstance(calls, list | tuple):
        raise BadCall("tool_calls is no list")
    if len(calls) > MAX_CALLS:
        raise BadCall(f"more than {MAX_CALLS} calls")
    found: list[Call] = []
    left = MAX_JSON_CHARS
    for call in calls:
        found.append(_read_call(call, left))
        left -= found[-1].size
    return found


def _read_call(call: Any, most: int) -> Call:
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise BadCall("a tool call without a function name")
    text = function.get("arguments")
    if not isinstance(text, str):
        raise BadCall(f"the arguments of {quote(name)} are no JSON text")
    if len(text) > most:
        raise BadCall(f"the arguments of all calls are longer than {MAX_JSON_CHARS:,} characters")
    try:
        arguments = read_json(text)
    except NotJson as error:
        raise BadCall(f"the arguments of {quote(name)} are not JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise BadCall(f"the arguments of {quote(name)} are no JSON object")
    return Call(name, arguments, len(text))


def quote(name: str) -> str:
    """Render a name from an answer, short and in ASCII."""
    return ascii(name if len(name) <= 64 else f"{name[:64]}...")[1:-1]
