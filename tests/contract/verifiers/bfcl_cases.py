"""Cases from BFCL's own data: its tools and ground truth in our shape, and right and wrong answers to each item.

Everything is drawn from the item's name, so that the same cases come out every time.
"""

import json
import random
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CATEGORIES = (
    "simple_python", "multiple", "parallel", "parallel_multiple",
    "live_simple", "live_multiple", "live_parallel", "live_parallel_multiple",
)  # fmt: skip
RULES = {"texts": "punctuation", "defaults": False}
"""The rules of `function_call` under which it compares as BFCL does."""

_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
_PLAIN = ("title", "description", "default", "enum", "format", "maximum")

Call = dict[str, dict[str, Any]]
"""A call as BFCL writes it: `{name: arguments}`."""


@dataclass(frozen=True)
class Case:
    """One answer to one item, with a right answer and what was done to it."""

    item: str
    category: str
    functions: list[dict[str, Any]]
    truth: list[dict[str, Any]]
    answer: list[Call]
    right: list[Call]
    made_by: str


def read_items(data: Path, category: str) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Read the items of a category with their ground truth; `irrelevance` has none."""
    name = f"BFCL_v4_{category}.json"
    truths = {}
    if (data / "possible_answer" / name).exists():
        lines = (data / "possible_answer" / name).read_text().splitlines()
        truths = {item["id"]: item["ground_truth"] for item in map(json.loads, lines)}
    for item in map(json.loads, (data / name).read_text().splitlines()):
        yield item, truths.get(item["id"], [])


def to_schema(described: dict[str, Any]) -> dict[str, Any]:
    """Turn BFCL's description of an argument into a JSON schema; "any" allows everything."""
    schema = {name: described[name] for name in _PLAIN if name in described}
    kind = described.get("type")
    if kind != "any":
        schema["type"] = _TYPES.get(kind, kind)
    if "properties" in described:
        schema["properties"] = {name: to_schema(one) for name, one in described["properties"].items()}
    if "required" in described:
        schema["required"] = described["required"]
    if isinstance(described.get("items"), dict):
        schema["items"] = to_schema(described["items"])
    return schema


def to_tools(functions: list[dict[str, Any]], *, whole: bool = True) -> list[dict[str, Any]]:
    """Turn BFCL's functions into OpenAI's tools.

    Not `whole`: with no more than its checker reads of them, which is the arguments' names, which of them are required,
    their types and those of a list's items; no enum, no format, and nothing of what is inside of an object.
    """
    tools = []
    for one in functions:
        schema = to_schema(one["parameters"])
        if not whole:
            schema["properties"] = {name: _strip(part) for name, part in schema["properties"].items()}
        tools.append({"type": "function", "function": {"name": one["name"], "parameters": schema}})
    return tools


def _strip(schema: dict[str, Any]) -> dict[str, Any]:
    kept = {"type": schema["type"]} if "type" in schema else {}
    if isinstance(schema.get("items"), dict) and "type" in schema["items"]:
        kept["items"] = {"type": schema["items"]["type"]}
    return kept


def to_reference(truth: list[dict[str, Any]], functions: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Turn a ground truth into a reference: each argument is one of its values, and "" among them makes it optional."""
    if not truth:
        return None
    calls = []
    for call in truth:
        ((name, arguments),) = call.items()
        known = find_arguments(functions, name)
        made = {one: to_pattern(values, known.get(one, {}).get("type")) for one, values in arguments.items()}
        calls.append({"name": name, "arguments": {one: pattern for one, pattern in made.items() if pattern}})
    return calls


def to_pattern(values: list[Any], kind: str | None) -> dict[str, Any] | None:
    """Turn the values that an argument may have into what stands for them; None for one that may only be left out.

    To BFCL "" says both that the argument is optional and that an empty text is right, where it is a text.
    """
    texts = kind in ("string", "any", None)
    found = [to_value(value) for value in values if value != "" or texts]
    return {"$any_of": found, "$optional": "" in values} if found else None


def to_value(value: Any) -> Any:
    """Turn an acceptable value into one of ours: in objects every member has a list of values of its own."""
    if isinstance(value, dict):
        return {
            name: to_pattern(values, None) if isinstance(values, list) else values for name, values in value.items()
        }
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        return [to_value(one) for one in value]
    return value


def find_arguments(functions: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next((one["parameters"]["properties"] for one in functions if one["name"] == name), {})


def to_answer(calls: list[Call]) -> dict[str, Any]:
    """Turn calls into an assistant's message."""
    named = [next(iter(call.items())) for call in calls]
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for name, arguments in named
        ],
    }


def make_cases(category: str, item: dict[str, Any], truth: list[dict[str, Any]]) -> Iterator[Case]:
    """Make the cases of one item: its right answers, and each of them spoiled in one way."""
    functions, name = item["function"], item["id"]
    rng = random.Random(name)
    seen = set()
    for made_by, answer in _make_answers(category, truth, functions, rng):
        written = json.dumps(answer)
        if written not in seen:
            seen.add(written)
            yield Case(name, category, functions, truth, answer, [fill(call) for call in truth], made_by)


def _make_answers(
    category: str, truth: list[dict[str, Any]], functions: list[dict[str, Any]], rng: random.Random
) -> Iterator[tuple[str, list[Call]]]:
    if category == "irrelevance":
        yield "no call", []
        for one in functions[:3]:  # some items offer none
            yield "a call", [{one["name"]: {}}]
        return
    right = [fill(call) for call in truth]
    yield "right", right
    yield "right, without what is optional", [fill(call, full=False) for call in truth]
    for at, call in enumerate(truth):
        for made_by, spoiled in _vary_call(call, right[at], functions, rng):
            yield made_by, [*right[:at], spoiled, *right[at + 1 :]]
    yield "no call", []
    yield "twice", [*right, right[0]]
    if len(right) > 1:
        yield "right, turned round", right[::-1]
        yield "one call missing", right[1:]
        yield "one call instead of another", [right[0], *right[:-1]]


def fill(call: dict[str, Any], *, full: bool = True) -> Call:
    """Make a right call: the first right value of each argument, `full` or without the optional ones."""
    ((name, arguments),) = call.items()
    return {name: {one: _pick(values) for one, values in arguments.items() if _is_given(values, full=full)}}


def _is_given(values: list[Any], *, full: bool) -> bool:
    return any(value != "" for value in values) if full else "" not in values


def _pick(values: list[Any], at: int = 0) -> Any:
    found = [value for value in values if value != ""] or values
    return _plain(found[at % len(found)]) if found else None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _pick(one) if isinstance(one, list) else one for name, one in value.items() if one != [""]}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value


def _vary_call(
    truth: dict[str, Any], right: Call, functions: list[dict[str, Any]], rng: random.Random
) -> Iterator[tuple[str, Call]]:
    ((name, arguments),) = right.items()
    ((_, values),) = truth.items()
    yield "another name", {f"{name}_x": arguments}
    others = [one["name"] for one in functions if one["name"] != name]
    if others:
        yield "another tool", {rng.choice(others): arguments}
    yield "an unknown argument", {name: {**arguments, "quite_unknown": 1}}
    unused = [one for one in find_arguments(functions, name) if one not in arguments]
    if unused:
        yield "an argument more", {name: {**arguments, rng.choice(unused): "x"}}
    swapped = [(a, b) for a in arguments for b in arguments if a < b and type(arguments[a]) is type(arguments[b])]
    if swapped:
        a, b = rng.choice(swapped)
        yield "two arguments swapped", {name: {**arguments, a: arguments[b], b: arguments[a]}}
    for one in arguments:
        yield "an argument missing", {name: {key: value for key, value in arguments.items() if key != one}}
        for at in range(1, min(len(values[one]), 4)):
            yield "another right value", {name: {**arguments, one: _pick(values[one], at)}}
        for made_by, value in _vary_value(arguments[one], rng):
            yield made_by, {name: {**arguments, one: value}}


def _vary_value(value: Any, rng: random.Random) -> Iterator[tuple[str, Any]]:
    """Change a value: some changes leave it right, most do not. BFCL's checker says which."""
    if isinstance(value, bool):
        yield "wrong value", not value
        yield "wrong type", str(value).lower()
        yield "number for boolean", int(value)
    elif isinstance(value, int | float):
        yield "wrong value", value + 1
        yield "wrong value", -value - 2
        yield "wrong type", str(value)
        yield "whole or part", float(value) if isinstance(value, int) else int(value)
    elif isinstance(value, str):
        yield "wrong value", f"{value}x"
        yield "wrong value", value[:-1]
        yield "empty text", ""
        yield "wrong type", 5
        yield "wrong type", [value]
        yield "letters", value.upper()
        yield "punctuation", value.replace(" ", rng.choice(["-", "_", ", ", "  "]))
        yield "other punctuation", value.replace(" ", rng.choice(["+", ":", ";"]))
    elif isinstance(value, list):
        yield "wrong value", value[1:]
        yield "wrong value", [*value, *value[:1]]
        yield "wrong order", value[::-1]
        yield "wrong type", json.dumps(value)
        yield "wrong type", value[0] if value else 1
        for made_by, inner in _vary_value(value[0], rng) if value else ():
            yield f"{made_by} in a list", [inner, *value[1:]]
    elif isinstance(value, dict):
        yield "wrong type", json.dumps(value)
        yield "an unknown member", {**value, "quite_unknown": 1}
        for name in list(value)[:4]:
            yield "a member missing", {key: inner for key, inner in value.items() if key != name}
            for made_by, inner in list(_vary_value(value[name], rng))[:5]:
                yield f"{made_by} in an object", {**deepcopy(value), name: inner}
    else:
        yield "wrong type", "null"
