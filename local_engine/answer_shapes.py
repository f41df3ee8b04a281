"""Which shape a request forces upon its answer: calls of its tools, or JSON. Written as the source of a grammar.

Called by the endpoints, before anything is built or computed. What is forced is what `tool_calls` reads.
"""

import json
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from local_engine.errors import Refused
from local_engine.grammars import GrammarSource, Schema

_MOST_DEPTH = 64
_MOST_MULTIPLE = 10_000  # a grammar counts remainders: its size grows with this
_ANY_OBJECT = {"type": "object"}
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
_CALL_END = json.dumps("}\n</tool_call>")
_SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMA_FIELDS = ("items", "additionalProperties")
_Tools = list[dict[str, Any]]


def read_choice(choice: Any, tools: _Tools | None) -> tuple[str, _Tools | None]:
    """Read `tool_choice`: none, auto, required or named, and the tools that the model gets to see.

    Raises: Refused where the choice is none of these, or what has to be called is not there.
    """
    if choice is None:
        return ("auto" if tools else "none"), tools
    if choice in ("none", "auto"):
        return choice, tools if choice == "auto" else None
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if choice != "required" and not isinstance(name, str):
        raise Refused("tool_choice must be none, auto, required, or {type: function, function: {name}}.")
    if not tools:
        raise Refused("tool_choice asks for a call, and there are no tools.")
    if choice == "required":
        return "required", tools
    named = [tool for tool in tools if tool["function"]["name"] == name]
    if not named:
        raise Refused(f"tool_choice names {name!r}, which is not among the tools.")
    return "named", named


def read_shape(body: Mapping[str, Any], choice: str, tools: _Tools | None) -> GrammarSource | None:
    """Say what the answer is forced into, if into anything: calls, JSON, or either where both are open.

    Raises: Refused where a schema is malformed, or beyond what grammars are built of.
    """
    several = body.get("parallel_tool_calls") is not False
    answer = read_format(body.get("response_format"))
    forced = choice in ("required", "named")
    calls = _write_calls(tools or [], several=several and choice != "named", follow=forced)
    if forced:
        return GrammarSource(f"start: calls\n{calls.rules}", calls.schemas)
    if answer is not None and tools:
        place = len(calls.schemas)
        return GrammarSource(f"start: @schema_{place} | calls\n{calls.rules}", (*calls.schemas, answer))
    if answer is not None:
        return GrammarSource("start: @schema_0\n", (answer,))
    if any(tool["function"].get("strict") for tool in tools or []):
        return _write_free_calls(calls, several=several)
    return None


def read_format(given: Any) -> Schema | None:
    """Read `response_format`: the schema of the answer, or None for a text.

    Raises: Refused.
    """
    kind = given.get("type") if isinstance(given, dict) else given
    if kind in (None, "text"):
        return None
    if kind == "json_object":
        return Schema("response_format", _ANY_OBJECT)
    if kind != "json_schema":
        raise Refused("response_format must be text, json_object or json_schema.")
    place = "response_format.json_schema.schema"
    fields = given.get("json_schema")
    schema = fields.get("schema") if isinstance(fields, dict) else None
    return Schema(place, _read_schema(schema, place))


def _write_calls(tools: _Tools, *, several: bool, follow: bool) -> GrammarSource:
    """Write the rules `calls` and `body`. Arguments keep to their schema where `follow`, or the tool is strict."""
    schemas, rules = [], ["calls: call" + (r' ("\n" call)*' if several else "")]
    rules.append(r'call: "<tool_call>" body')
    rules.append(f'body: "\\n" ({" | ".join(f"call_{index}" for index in range(len(tools)))}) {_CALL_END}')
    rules.append("SPACE: / ?/")
    for index, tool in enumerate(tools):
        function = tool["function"]
        place = f"tools[{index}].function.parameters ({function['name']})"
        strict = bool(function.get("strict"))
        schemas.append(Schema(place, _read_arguments(function, place, follow=follow or strict), exact=strict))
        named = json.dumps(json.dumps(function["name"], ensure_ascii=False) + ', "arguments":', ensure_ascii=False)
        rules.append(f"call_{index}: {json.dumps('{' + json.dumps('name') + ':')} SPACE {named} SPACE @schema_{index}")
    return GrammarSource("\n".join(rules) + "\n", tuple(schemas))


def _write_free_calls(calls: GrammarSource, *, several: bool) -> GrammarSource:
    """Write a text in which calls may stand, and whatever begins like a call becomes one."""
    start = "start: (text_before body)* TEXT" if several else "start: text_before body | TEXT"
    text = 'text_before[lazy]: TEXT "<tool_call>"\nTEXT: /(.|\\n)*/'
    return GrammarSource(f"{start}\n{text}\n{calls.rules}", calls.schemas)


def _read_arguments(function: Mapping[str, Any], place: str, *, follow: bool) -> dict[str, Any]:
    if not follow:
        return _ANY_OBJECT
    if function.get("parameters") is None:
        return _NO_ARGUMENTS
    return {**_read_schema(function["parameters"], place), "type": "object"}


def _read_schema(schema: Any, place: str) -> dict[str, Any]:
    if not isinstance(schema, dict):
        raise Refused(f"{place} must be an object that is a JSON schema.")
    _check_cost(schema, place)
    return _close_objects(schema) if not any(map(_composes, _walk_schemas(schema))) else schema


def _check_cost(schema: dict[str, Any], place: str) -> None:
    level: list[Any] = [schema]
    multiple = Fraction(1)
    for _ in range(_MOST_DEPTH):
        inner: list[Any] = []
        for value in level:
            inner += value.values() if isinstance(value, dict) else value
            given = value.get("multipleOf") if isinstance(value, dict) else None
            if isinstance(given, int | float) and math.isfinite(given):
                number = Fraction(str(given))
                multiple = Fraction(
                    math.lcm(multiple.numerator, number.numerator), math.lcm(multiple.denominator, number.denominator)
                )
        if max(multiple.numerator, multiple.denominator) > _MOST_MULTIPLE:
            raise Refused(f"{place} cannot be forced: multipleOf goes up to {_MOST_MULTIPLE}, with all that are given.")
        level = [value for value in inner if isinstance(value, dict | list)]
        if not level:
            return
    raise Refused(f"{place} cannot be forced: it is nested over {_MOST_DEPTH} deep.")


def _inner_schemas(schema: Mapping[str, Any]) -> Iterator[Any]:
    for name in _SCHEMA_MAPS:
        yield from schema[name].values() if isinstance(schema.get(name), dict) else ()
    for name in _SCHEMA_LISTS:
        yield from schema[name] if isinstance(schema.get(name), list) else ()
    yield from (schema[name] for name in _SCHEMA_FIELDS if name in schema)


def _walk_schemas(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for inner in _inner_schemas(schema):
            yield from _walk_schemas(inner)


def _composes(schema: Mapping[str, Any]) -> bool:
    """Say whether an object's properties come from more than one place: closing one of them would close out others."""
    beside = {"anyOf", "oneOf", "$ref"} & schema.keys()
    return "allOf" in schema or bool(beside and "properties" in schema)


def _close_objects(schema: Any) -> Any:
    """Allow no properties but those that are listed, where nothing is said of others. XGrammar does so too."""
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    for name in _SCHEMA_MAPS:
        if isinstance(closed.get(name), dict):
            closed[name] = {key: _close_objects(value) for key, value in closed[name].items()}
    for name in _SCHEMA_LISTS:
        if isinstance(closed.get(name), list):
            closed[name] = [_close_objects(value) for value in closed[name]]
    for name in _SCHEMA_FIELDS:
        if name in closed:
            closed[name] = _close_objects(closed[name])
    if "properties" in closed and "patternProperties" not in closed:
        closed.setdefault("additionalProperties", False)
    return closed
