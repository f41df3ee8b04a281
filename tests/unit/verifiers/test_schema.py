"""Schemas: what is refused, what is told of a flaw, and that none of them can take long."""

import time
from functools import reduce

import pytest

from verifiers.schema import BadSchema, Schema, TooCostly
from verifiers.schema_cost import Cost, measure, measure_depth


def doubling(levels, keyword="allOf"):
    """A schema that judges the same value 2**levels times."""
    links = {str(i): {keyword: [{"$ref": f"#/$defs/{i + 1}"}] * 2} for i in range(levels)}
    return {"$ref": "#/$defs/0", "$defs": {**links, str(levels): {"type": "string"}}}


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"$ref": "http://127.0.0.1:1/x"}, "must point into the schema itself"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "must point into the schema itself"),
        ({"items": {"$ref": "other.json"}}, "must point into the schema itself"),
        ({"$ref": "#anchor"}, "must point into the schema itself"),
        ({"$ref": 5}, "must point into the schema itself"),
        ({"$ref": "#/$defs/none"}, "points to nothing"),
        ({"$dynamicRef": "#x"}, "is not supported"),
        ({"items": {"$recursiveRef": "#"}}, "is not supported"),
        ({"properties": {"a": {"$id": "http://x/y"}}}, "only the root of a schema may have an id"),
        ({"$schema": "http://127.0.0.1:1/meta"}, "127.0.0.1"),
        ({"$ref": "#"}, "refers to itself"),
        ({"anyOf": [{"type": "null"}, {"$ref": "#"}]}, "refers to itself"),
        (
            # the loop closes over a place that was visited on a way down
            {
                "properties": {"x": {"$ref": "#/$defs/b"}},
                "allOf": [{"$ref": "#/$defs/c"}],
                "$defs": {"b": {"allOf": [{"$ref": "#"}]}, "c": {"$ref": "#/$defs/b"}},
            },
            "refers to itself",
        ),
        (reduce(lambda inner, _: {"items": inner}, range(5000), {}), "nested too deeply"),
        ({"type": "strin"}, "not valid"),
        ({"pattern": "("}, "regex"),
        ({"enum": ["\ud800"]}, "surrogates"),
    ],
)
def test_refuses(schema, says):
    with pytest.raises(BadSchema, match=says):
        Schema(schema)


def test_says_where_a_schema_is_bad():
    with pytest.raises(BadSchema) as caught:
        Schema({"properties": {"a": {"type": "strin"}}})
    assert caught.value.where == "/properties/a/type"


@pytest.mark.parametrize(
    ("schema", "cost"),
    [
        (True, Cost(1, 1)),
        ({"properties": {str(i): {"type": "string"} for i in range(500)}}, Cost(1, 1)),
        (doubling(3), Cost(30, 1)),
        ({"properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}}, Cost(1, 1)),
        ({"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}, Cost(1, 1)),
        ({"anyOf": [{"properties": {"left": {"$ref": "#"}}}, {"properties": {"left": {"$ref": "#"}}}]}, Cost(3, 2)),
        ({"properties": {"a": {"$ref": "#"}}, "patternProperties": {"a": {"$ref": "#"}}}, Cost(2, 2)),
    ],
)
def test_measures(schema, cost):
    assert measure(schema) == cost


@pytest.mark.parametrize(("value", "depth"), [(1, 0), ([], 0), ([[1], 2], 2), ({"a": {"b": [1]}}, 3)])
def test_measures_depth(value, depth):
    assert measure_depth(value) == depth


@pytest.mark.parametrize("keyword", ["allOf", "anyOf", "oneOf"])
def test_a_doubling_schema_is_not_even_tried(keyword):
    started = time.perf_counter()
    with pytest.raises(TooCostly):
        Schema(doubling(60, keyword)).find_flaw("x", 3)
    assert time.perf_counter() - started < 2


def test_a_recursion_that_doubles_is_bounded_by_depth():
    schema = Schema(
        {"anyOf": [{"required": ["n"], "properties": {"k": {"$ref": "#"}}}, {"properties": {"k": {"$ref": "#"}}}]}
    )
    value = reduce(lambda inner, _: {"k": inner}, range(8), {})
    assert schema.find_flaw(value, 60) is None
    with pytest.raises(TooCostly):
        schema.find_flaw(reduce(lambda inner, _: {"k": inner}, range(60), {}), 400)


def test_patterns_cannot_backtrack_for_long():
    started = time.perf_counter()
    assert Schema({"pattern": "^(a+)+$"}).find_flaw("a" * 5000 + "b") is not None
    with pytest.raises(TooCostly):
        Schema({"pattern": "^(?:(a+)\\1?)+$"}).find_flaw("a" * 400 + "c")
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("schema", "value", "path", "tells"),
    [
        ({"properties": {"a/b": {"items": {"type": "string"}}}}, {"a/b": ["x", 1]}, "/a~1b/1", False),
        ({"required": ["x"]}, {}, "(root)", False),
        ({"const": 42}, 41, "(root)", True),
        ({"enum": [1, 2]}, 3, "(root)", True),
        ({"pattern": "^secret$"}, "x", "(root)", True),
        ({"format": "date"}, "x", "(root)", False),
        ({"type": "integer"}, 1.5, "(root)", False),
    ],
)
def test_finds_the_flaw(schema, value, path, tells):
    flaw = Schema(schema).find_flaw(value)
    assert (flaw.path, flaw.tells_value) == (path, tells)


def test_long_values_are_cut_in_messages():
    assert len(Schema({"type": "integer"}).find_flaw("x" * 10_000).message) < 400


def test_names_of_properties_are_not_keywords():
    schema = {"$id": "http://x/y", "properties": {"$id": {"type": "string"}, "$ref": {"type": "string"}, "id": {}}}
    assert Schema(schema).find_flaw({"$id": "a", "$ref": "b", "id": "c"}) is None
