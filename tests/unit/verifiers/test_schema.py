"""Schemas: what is refused, what is told of a flaw, and that none of them can take long."""

import json
import time
from functools import reduce

import pytest

from verifiers.schema import BadSchema, Schema, TooCostly
from verifiers.schema_cost import Cost, count_leaves, measure, measure_depth
from verifiers.schema_weights import count_states


def doubling(levels, keyword="allOf"):
    """A schema that judges the same value 2**levels times."""
    links = {str(i): {keyword: [{"$ref": f"#/$defs/{i + 1}"}] * 2} for i in range(levels)}
    return {"$ref": "#/$defs/0", "$defs": {**links, str(levels): {"type": "string"}}}


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"$ref": "http://127.0.0.1:1/x"}, "must point into the schema itself"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "must point into the schema itself"),
        ({"items": {"$ref": "other.json"}}, "must point into the schema itself"),
        ({"$ref": "//127.0.0.1/x"}, "must point into the schema itself"),
        ({"$ref": "urn:uuid:deadbeef-1234-0000-0000-4321feebdaed"}, "must point into the schema itself"),
        ({"$ref": "?#/$defs/a", "$defs": {"a": True}}, "must point into the schema itself"),
        ({"$ref": ""}, "must point into the schema itself"),
        ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, "must point into the schema itself"),
        ({"$ref": "#anchor"}, "points to nothing"),
        ({"$ref": 5}, "must point into the schema itself"),
        ({"$ref": "#/$defs/none"}, "points to nothing"),
        ({"$ref": "#/allOf/-1", "allOf": [True]}, "points to nothing"),
        ({"$ref": "#/allOf/\u0660", "allOf": [True]}, "points to nothing"),
        ({"$ref": "#/$defs/%FF", "$defs": {"\ufffd": True}}, "points to nothing"),
        ({"$dynamicRef": "#x"}, "points to nothing"),
        ({"$dynamicRef": "http://127.0.0.1:1/x"}, "must point into the schema itself"),
        ({"$dynamicRef": "other.json#x"}, "must point into the schema itself"),
        ({"items": {"$recursiveRef": "http://x/y"}}, "must point into the schema itself"),
        ({"properties": {"a": {"$id": "http://x/y"}}}, "only the root of a schema may have an id"),
        ({"properties": {"a": {"$id": "#x"}}}, "only the root of a schema may have an id"),
        ({"$schema": "http://127.0.0.1:1/meta"}, "127.0.0.1"),
        ({"$schema": "file:///etc/passwd"}, "etc/passwd"),
        ({"$schema": "urn:example:meta"}, "urn:example:meta"),
        # a reference through a part with an id, from where the validator would read `#` as that part
        (
            {
                "$ref": "#/$defs/a/properties/b",
                "$defs": {"a": {"$id": "http://x/", "properties": {"b": {"$ref": "#/$defs/c"}}}, "c": True},
            },
            "only the root of a schema may have an id",
        ),
        ({"$ref": "#a", "$defs": {"x": {"$anchor": "a"}, "y": {"$dynamicAnchor": "a"}}}, "two parts"),
        ({"$ref": "#a", "$defs": {"x": {"$anchor": "a"}, "y": {"const": {"$anchor": "a"}}}}, "two parts"),
        (
            {
                "$schema": "http://json-schema.org/draft-07/schema#",
                "$ref": "#a",
                "definitions": {"x": {"$anchor": "a"}, "y": {"$id": "http://x/#a"}},
            },
            "two parts",
        ),
        ({"$ref": "#a", "const": {"$anchor": "a"}}, "does not exist"),
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
        ({"properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}}, Cost(2, 1)),
        ({"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}, Cost(1, 1)),
        ({"anyOf": [{"properties": {"left": {"$ref": "#"}}}, {"properties": {"left": {"$ref": "#"}}}]}, Cost(3, 2)),
        ({"properties": {"a": {"$ref": "#"}}, "patternProperties": {"a": {"$ref": "#"}}}, Cost(4, 2)),
        ({"items": {"minimum": 1, "maximum": 2.5, "title": "x"}}, Cost(2, 1, 70)),
        ({"multipleOf": 0.01}, Cost(1, 1, 2_500)),
        ({"enum": ["a", 1, None]}, Cost(2, 1)),
        ({"enum": ["a", 1.5, {}]}, Cost(45, 1, 540)),
        ({"pattern": "^a{2}(b|[cd]){3,5}$"}, Cost(1 + 1 + 2 + 10, 1)),
        ({"pattern": "^(?=a)"}, Cost(1 + 1 + 2, 1, 9_000)),
        (
            {"allOf": [{"anyOf": [True], "unevaluatedItems": False}], "unevaluatedItems": False},
            Cost(2 + 3 * (2 + 3), 1),
        ),
    ],
)
def test_measures(schema, cost):
    assert measure(schema) == cost


@pytest.mark.parametrize(("value", "depth"), [(1, 0), ([], 0), ([[1], 2], 2), ({"a": {"b": [1]}}, 3)])
def test_measures_depth(value, depth):
    assert measure_depth(value) == depth


@pytest.mark.parametrize(("value", "leaves"), [(1, 1), ([], 0), ([[1], "x"], 2), ({"a": {"b": [1]}}, 3)])
def test_counts_leaves(value, leaves):
    assert count_leaves(value) == leaves


@pytest.mark.hostile
@pytest.mark.parametrize("keyword", ["allOf", "anyOf", "oneOf"])
def test_a_doubling_schema_is_not_even_tried(keyword):
    started = time.process_time()
    with pytest.raises(TooCostly):
        Schema(doubling(60, keyword)).find_flaw("x", 3)
    assert time.process_time() - started < 4


def test_a_recursion_that_doubles_is_bounded_by_depth():
    schema = Schema(
        {"anyOf": [{"required": ["n"], "properties": {"k": {"$ref": "#"}}}, {"properties": {"k": {"$ref": "#"}}}]}
    )
    value = reduce(lambda inner, _: {"k": inner}, range(8), {})
    assert schema.find_flaw(value, 60) is None
    with pytest.raises(TooCostly):
        schema.find_flaw(reduce(lambda inner, _: {"k": inner}, range(60), {}), 400)


@pytest.mark.hostile
def test_patterns_cannot_backtrack_for_long():
    started = time.process_time()
    assert Schema({"pattern": "^(a+)+$"}).find_flaw("a" * 5000 + "b") is not None
    with pytest.raises(TooCostly):
        Schema({"pattern": "^(?:(a+)\\1?)+$"}).find_flaw("a" * 400 + "c")
    assert time.process_time() - started < 4


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


def test_a_percent_sign_is_read_as_the_validator_reads_it():
    """What is measured has to be what is paid for: `a%2Fb` is `b` in `a`, not a part named `a/b`."""
    defs = {"a/b": True, "a": {"b": {"allOf": [{"type": "string"}] * 7}}}
    schema = {"$ref": "#/$defs/a%2Fb", "$defs": defs}
    assert measure(schema).paths == 9
    assert Schema(schema).find_flaw(5) is not None


@pytest.mark.parametrize("keyword", ["$ref", "$dynamicRef"])
def test_a_recursion_by_a_name_is_measured(keyword):
    link = {"properties": {"k": {keyword: "#n"}}}
    schema = {"$ref": "#n", "$defs": {"n": {"$dynamicAnchor": "n", "anyOf": [link, {"required": ["z"], **link}]}}}
    assert measure(schema).growth == 2
    assert measure({"items": {"$recursiveRef": "#"}}) == measure({"items": {"$ref": "#"}})
    with pytest.raises(BadSchema, match="refers to itself"):
        measure({"$dynamicAnchor": "n", "allOf": [{keyword: "#n"}]})


@pytest.mark.parametrize(
    ("pattern", "states"),
    [
        ("", 0), ("abc", 3), (".{10}", 10), ("\\w{10}", 10), ("[^a]{2,}", 2), ("(a|b){3}", 6),
        ("((a{10}){10}){10}", 1000),
        ("\\{3}", 3), ("[{]{3}", 3), ("a{3", 3), ("\\p{L}{2}", 60), ("\\u{1F600}", 1), (")a(", 2), ("[", 1), ("\\", 1),
        ("(((a{999}){999}){999}){999}", 10**9), ("a+?b*", 2),
    ],
)  # fmt: skip
def test_counts_what_a_pattern_repeats(pattern, states):
    assert count_states(pattern) == states


def nested(levels, keyword):
    return reduce(
        lambda inner, _: {keyword: [inner], "unevaluatedProperties": False}, range(levels), {"properties": {}}
    )


LONG = 400_000
HOSTILE = {
    "backtracking just short of its limit": (
        {"items": {"not": {"pattern": "^(?:(a+)\\1?)+$"}}}, ["a" * 9 + "c"] * (LONG // 13),
    ),
    "objects to compare with": ({"items": {"enum": [{"a": at} for at in range(3000)]}}, [{"a": 2999}] * (LONG // 11)),
    "fractions to compare with": ({"items": {"enum": [at + 0.5 for at in range(3000)]}}, [2999.5] * (LONG // 7)),
    "a tiny fraction to divide by": ({"items": {"multipleOf": 1e-300}}, [1e300] * (LONG // 7)),
    "many small checks": ({"items": {"allOf": [{"minimum": 0, "multipleOf": 1}] * 90}}, [1] * (LONG // 2)),
    "what is unevaluated, level by level": (nested(24, "anyOf"), {"a": 1}),
    "names that others depend on": (
        {"items": {"dependentRequired": {str(at): [] for at in range(3000)}}}, [{}] * (LONG // 3),
    ),
    "a pattern of thousands of states": ({"pattern": "(?:\\w{0,60}\\W?){0,60}\u00e9"}, "ab" * (LONG // 2)),
    "names in other scripts": ({"format": "idn-hostname"}, "\u00e9." * (LONG // 2)),
}  # fmt: skip


@pytest.mark.hostile
@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_take_seconds_is_not_begun(name):
    schema, value = HOSTILE[name]
    compiled = Schema(schema)
    with pytest.raises(TooCostly, match="too large"):
        compiled.find_flaw(value, LONG if name != "what is unevaluated, level by level" else 7)


def test_what_is_usual_is_not_too_costly():
    record = {
        "id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4,8}$"},
        "name": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^.{1,200}$"},
        "price": {"type": "number", "minimum": 0, "multipleOf": 0.01},
        "mail": {"type": "string", "format": "email"},
        "state": {"enum": ["new", "old", None]},
        "more": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}]},
    }
    schema = {"items": {"properties": record, "required": ["id"], "additionalProperties": False}}
    one = {"id": "AB-12345", "name": "A name", "price": 19.99, "mail": "a@example.com", "state": "new", "more": [1, 2]}
    value = [one] * 100
    assert Schema(schema).find_flaw(value, len(json.dumps(value))) is None


@pytest.mark.hostile
@pytest.mark.parametrize(
    "patterns", [[f"(?:\\w{{0,60}}\\W?){{0,60}}{at}" for at in range(20)], [f"a{at}" for at in range(600)]]
)
def test_patterns_are_bounded_all_together(patterns):
    with pytest.raises(BadSchema, match="repeat too much"):
        Schema({"anyOf": [{"pattern": pattern} for pattern in patterns]})


@pytest.mark.hostile
@pytest.mark.parametrize("keyword", ["unevaluatedProperties", "unevaluatedItems"])
def test_what_compiles_for_ever_is_refused(keyword):
    """The validator copies, each time anew, all that judges the same value as a schema that asks what is left."""
    doubles = doubling(40)
    asks = {"allOf": [{"$ref": "#"}], keyword: False}
    around = {"allOf": [{"properties": {"y": asks}}, {"$ref": "#/$defs/0"}], "$defs": doubles["$defs"]}
    for schema in ({**doubles, keyword: False}, {"items": doubles | {keyword: {}}, "$defs": doubles["$defs"]}, around):
        with pytest.raises(BadSchema, match="what is unevaluated depends on too much"):
            Schema(schema)


@pytest.mark.hostile
@pytest.mark.parametrize(
    "schema", [{"prefixItems": [True] * 6000}, {"anyOf": [{"const": at} for at in range(6000)]}], ids=["true", "const"]
)
def test_a_schema_has_so_many_parts(schema):
    with pytest.raises(BadSchema, match="more than 5,000 parts"):
        Schema(schema)


def test_what_is_unevaluated_may_depend_on_a_few_references():
    parts = {str(n): {"properties": {str(n): {"type": "integer"}}} for n in range(100)}
    whole = {"allOf": [{"$ref": f"#/$defs/{n}"} for n in range(100)], "$defs": parts, "unevaluatedProperties": False}
    assert Schema(whole).find_flaw({"1": 1, "99": 2}, 20) is None
    assert Schema(whole).find_flaw({"1": 1, "100": 2}, 20) is not None
