"""The tools of a request: their schemas, closed to arguments that they do not name. Called by `function_call`."""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from verifiers.calls import BadCall, Call, quote
from verifiers.schema import BadSchema, Schema
from verifiers.schema_references import References

MAX_SCHEMA_CHARS = 64 * 1024
_COMBINES = (
    "$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", "if", "not", "dependentSchemas", "dependencies",
)  # fmt: skip
_OPENS = ("additionalProperties", "unevaluatedProperties", "patternProperties")
_MAX_PARTS = 32  # that are looked at for one place of a schema


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
    schema = json.loads(text)
    try:
        return Schema(_close(schema, References(schema), top=True))
    except RecursionError:
        raise BadSchema("the schema is nested too deeply") from None


def _close(schema: Any, references: References, *, top: bool = False) -> Any:
    """Close every object whose properties a schema names, and the arguments themselves, to other names.

    A part of `allOf` and its like, or of `$defs`, must not refuse what another part names: only its insides are closed,
    and whoever uses it is closed as a whole.
    """
    if not isinstance(schema, dict):
        return schema
    closed = _close_inside(schema, references)
    if not any(keyword in schema for keyword in _OPENS) and (top or _names_all(schema, references)):
        combines = any(keyword in schema for keyword in _COMBINES)
        closed["unevaluatedProperties" if combines else "additionalProperties"] = False
    return closed


def _close_inside(schema: Any, references: References) -> Any:
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    if isinstance(schema.get("properties"), dict):
        closed["properties"] = {name: _close(part, references) for name, part in schema["properties"].items()}
    for keyword in ("items", "additionalProperties"):
        closed.update({keyword: _close(schema[keyword], references)} if isinstance(schema.get(keyword), dict) else {})
    for keyword in ("items", "prefixItems"):
        if isinstance(schema.get(keyword), list):
            closed[keyword] = [_close(part, references) for part in schema[keyword]]
    for keyword in ("allOf", "anyOf", "oneOf"):
        if isinstance(schema.get(keyword), list):
            closed[keyword] = [_close_inside(part, references) for part in schema[keyword]]
    for keyword in ("$defs", "definitions"):
        if isinstance(schema.get(keyword), dict):
            closed[keyword] = {name: _close_inside(part, references) for name, part in schema[keyword].items()}
    return closed


def _names_all(schema: Mapping[str, Any], references: References) -> bool:
    """Tell whether a schema names the properties of the objects that it takes, here or in what it is combined of."""
    parts = list(walk_parts(schema, references))
    opened = any(keyword in part for part in parts for keyword in (*_OPENS, "if", "not", "dependentSchemas"))
    if len(parts) == _MAX_PARTS:  # there may be more
        return False
    return not opened and any("properties" in part for part in parts) and not any(map(_takes_any_object, parts))


def _takes_any_object(part: Mapping[str, Any]) -> bool:
    if "properties" in part or any(keyword in part for keyword in (*_COMBINES, "const", "enum")):
        return False
    types = part.get("type")
    return types is None or "object" in types


def walk_parts(schema: Any, references: References) -> Iterator[Mapping[str, Any]]:
    """List a subschema, what it refers to, and the parts of its `allOf`, `anyOf` and `oneOf`, each once; 32 at most."""
    left, seen = [schema], set[int]()
    while left and len(seen) < _MAX_PARTS:
        part = left.pop()
        if not isinstance(part, Mapping) or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        try:
            left.extend(references.targets(part))
        except BadSchema:  # the schema was never compiled
            continue
        for keyword in ("allOf", "anyOf", "oneOf"):
            if isinstance(part.get(keyword), list):
                left.extend(part[keyword])
