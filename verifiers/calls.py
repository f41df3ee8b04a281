"""Tool calls: read from an answer, the tools of a request with their schemas, and the comparison with a reference.

Called by the `function_call` kind. Comparison is by JSON types (true is not 1, "1" is not 1); 1 and 1.0 are the same
number only where the tool's schema says `number`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from verifiers.answers import NotJson, read_json
from verifiers.schema import BadSchema, Schema

MAX_CALLS = 64
MAX_SCHEMA_CHARS = 64 * 1024
_COMBINES = ("$ref", "allOf", "anyOf", "oneOf", "if", "not", "dependentSchemas", "dependencies")
_OPENS = ("additionalProperties", "unevaluatedProperties", "patternProperties")


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

    Raises: BadCall for calls that are not in OpenAI's shape or whose arguments are not one strict JSON object.
    """
    calls = answer.get("tool_calls")
    if calls is None:
        return []
    if not isinstance(calls, list | tuple):
        raise BadCall("tool_calls is no list")
    if len(calls) > MAX_CALLS:
        raise BadCall(f"more than {MAX_CALLS} calls")
    return [_read_call(call) for call in calls]


def _read_call(call: Any) -> Call:
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise BadCall("a tool call without a function name")
    text = function.get("arguments")
    if not isinstance(text, str):
        raise BadCall(f"the arguments of {quote(name)} are no JSON text")
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


def read_tools(request: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Read the tools of a request: the schema of the arguments by function name. Malformed ones are left out."""
    tools = request.get("tools")
    found: dict[str, Mapping[str, Any]] = {}
    for tool in tools if isinstance(tools, list | tuple) else ():
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            parameters = function.get("parameters")
            found.setdefault(function["name"], parameters if isinstance(parameters, Mapping) else {})
    return found


def check_arguments(call: Call, parameters: Mapping[str, Any]) -> None:
    """Check a call's arguments against its tool's schema, closed: what the schema does not name is unknown.

    Raises: BadCall for a flaw, BadSchema where the tool's own schema is none, TooCostly.
    """
    schema = compile_parameters(parameters)
    known = parameters.get("properties", {})
    if isinstance(known, Mapping) and not any(keyword in parameters for keyword in (*_COMBINES, *_OPENS)):
        for name in call.arguments:
            if name not in known:
                raise BadCall(f"{quote(call.name)} has no argument {quote(name)}")
    flaw = schema.find_flaw(call.arguments, call.size)
    if flaw:
        raise BadCall(f"the arguments of {quote(call.name)} are wrong at {flaw.path}: {flaw.message}")


def compile_parameters(parameters: Mapping[str, Any]) -> Schema:
    """Compile the schema of a tool's arguments; remembered, since requests repeat their tools.

    Raises: BadSchema.
    """
    try:
        text = json.dumps(parameters)
    except (TypeError, ValueError, RecursionError):
        raise BadSchema("the schema is not JSON") from None
    if len(text) > MAX_SCHEMA_CHARS:
        raise BadSchema(f"the schema is longer than {MAX_SCHEMA_CHARS:,} characters")
    return _compile(text)


@lru_cache(maxsize=256)
def _compile(text: str) -> Schema:
    try:
        return Schema(_close(json.loads(text), top=True))
    except RecursionError:
        raise BadSchema("the schema is nested too deeply") from None


def _close(schema: Any, *, top: bool = False) -> Any:
    """Close every object whose properties a schema names, and the arguments themselves, to other names.

    Only down `properties` and `items`: inside of `allOf` and its like a part must not refuse what another part names.
    """
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    if isinstance(schema.get("properties"), dict):
        closed["properties"] = {name: _close(part) for name, part in schema["properties"].items()}
    if isinstance(schema.get("items"), dict):
        closed["items"] = _close(schema["items"])
    if (top or "properties" in schema) and not any(keyword in schema for keyword in _OPENS):
        combines = any(keyword in schema for keyword in _COMBINES)
        closed["unevaluatedProperties" if combines else "additionalProperties"] = False
    return closed


def same_calls(expected: Sequence[Call], actual: Sequence[Call], tools: Mapping[str, Any], *, strict: bool) -> bool:
    """Tell whether two lists hold the same calls, in any order."""
    left = list(actual)
    for call in expected:
        schema = tools.get(call.name, {})
        found = next((other for other in left if same_call(call, other, schema, strict=strict)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def same_call(expected: Call, actual: Call, parameters: Mapping[str, Any], *, strict: bool) -> bool:
    """Tell whether two calls name the same function with the same arguments."""
    return expected.name == actual.name and same(
        expected.arguments, actual.arguments, parameters, parameters, strict=strict
    )


def same(expected: Any, actual: Any, schema: Any, root: Mapping[str, Any], *, strict: bool) -> bool:
    """Tell whether two JSON values are the same by type and value; `schema` describes them, as far as it is known.

    Not `strict`: 1 and 1.0 are the same everywhere, and texts are, but for case and white space.
    """
    schema = _follow(schema, root)
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        fields = schema.get("properties")
        fields = fields if isinstance(fields, Mapping) else {}
        return expected.keys() == actual.keys() and all(
            same(value, actual[name], fields.get(name), root, strict=strict) for name, value in expected.items()
        )
    if isinstance(expected, list) and isinstance(actual, list):
        items = schema.get("items")
        return len(expected) == len(actual) and all(
            same(left, right, items, root, strict=strict) for left, right in zip(expected, actual, strict=True)
        )
    if isinstance(expected, bool) or isinstance(actual, bool):
        return expected is actual
    if isinstance(expected, int | float) and isinstance(actual, int | float):
        loose = not strict or _says_number(schema, root)
        return expected == actual and (loose or type(expected) is type(actual))
    if isinstance(expected, str) and isinstance(actual, str) and not strict:
        return " ".join(expected.casefold().split()) == " ".join(actual.casefold().split())
    return type(expected) is type(actual) and expected == actual


def _says_number(schema: Mapping[str, Any], root: Mapping[str, Any]) -> bool:
    types = schema.get("type")
    if types == "number" or (isinstance(types, list) and "number" in types and "integer" not in types):
        return True
    options = schema.get("anyOf") or schema.get("oneOf")
    followed = (_follow(option, root) for option in options) if isinstance(options, list) else ()
    return any(option.get("type") == "number" for option in followed)


def _follow(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow the references of a subschema, which were checked when it was compiled; {} where nothing is known."""
    for _ in range(16):
        if not isinstance(schema, Mapping) or not isinstance(schema.get("$ref"), str):
            break
        found: Any = root
        for part in schema["$ref"].removeprefix("#").split("/")[1:]:
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        schema = found
    return schema if isinstance(schema, Mapping) else {}
