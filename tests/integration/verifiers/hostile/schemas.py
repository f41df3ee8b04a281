"""Schemas that mean harm, as the configuration of a `json_schema` verifier."""

import json
from functools import reduce

from tests.integration.verifiers.hostile.table import Hostile, Text

COSTLY = ("too_costly",)
PLACE = "config.schema"


def wrap(schema):
    return Text(f'{{"schema":{schema.json}}}') if isinstance(schema, Text) else {"schema": schema}


def judging(schema, answer, *ends, **more):
    """Make a case of a schema that may be registered; `answer` is a JSON value, or text as it stands."""
    text = answer if isinstance(answer, str) else json.dumps(answer, separators=(",", ":"))
    return Hostile("json_schema", wrap(schema), ends, answer=text, **more)


def refused(schema, says, place=PLACE):
    return Hostile("json_schema", wrap(schema), refused=place, says=says)


def outside(reference, keyword="$ref"):
    return refused({"items": {keyword: reference}}, "must point into the schema itself")


def doubling(levels, keyword):
    links = {str(n): {keyword: [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(levels)}
    return {"$ref": "#/$defs/0", "$defs": {**links, str(levels): {"type": "string"}}}


def doubling_if(levels):
    links = {str(n): {key: {"$ref": f"#/$defs/{n + 1}"} for key in ("if", "then", "else")} for n in range(levels)}
    return {"$ref": "#/$defs/0", "$defs": {**links, str(levels): {"type": "string"}}}


def nested(levels, make, inner):
    return reduce(lambda schema, _: make(schema), range(levels), inner)


def chain(length):
    return {"$ref": "#/$defs/0", "$defs": {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(length)}}


LEFT = "what is unevaluated depends on too much"
TOO_LARGE = "over the limit of 1048576 bytes"
CYCLE = "refers to itself without going down"
TREE = {"anyOf": [{"required": ["n"], "properties": {"k": {"$ref": "#"}}}, {"properties": {"k": {"$ref": "#"}}}]}
DEEP = nested(90, lambda inner: {"k": inner}, {})
LONG = 390_000

SCHEMAS = {
    # elsewhere
    "http": outside("http://127.0.0.1:1/x"),
    "https": outside("https://json-schema.org/draft/2020-12/schema"),
    "file": outside("file:///etc/passwd"),
    "ftp": outside("ftp://127.0.0.1/x"),
    "data": outside("data:application/json,{}"),
    "urn": outside("urn:uuid:deadbeef-1234-0000-0000-4321feebdaed"),
    "the same scheme": outside("//169.254.169.254/latest/meta-data"),
    "relative": outside("../../etc/passwd"),
    "query": outside("?#/$defs/a"),
    "dynamic http": outside("http://127.0.0.1:1/x#y", "$dynamicRef"),
    "recursive http": outside("http://127.0.0.1:1/x", "$recursiveRef"),
    "id elsewhere": refused({"$defs": {"a": {"$id": "http://127.0.0.1:1/", "$ref": "b"}}}, "", PLACE),
    "meta-schema elsewhere": refused({"$schema": "http://127.0.0.1:1/meta"}, "127.0.0.1"),
    # around in circles
    "itself": refused({"$ref": "#"}, CYCLE),
    "each other": refused(
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, CYCLE
    ),
    "itself within allOf": refused({"allOf": [{"not": {"$ref": "#"}}]}, CYCLE),
    "itself by a dynamic anchor": refused({"$dynamicAnchor": "a", "anyOf": [{"$dynamicRef": "#a"}]}, CYCLE),
    "itself by dependent schemas": refused({"dependentSchemas": {"a": {"$ref": "#"}}}, CYCLE),
    "a chain of 5,000": refused(chain(5000), ""),
    # doubling
    "allOf doubles": judging(doubling(60, "allOf"), '"x"', *COSTLY),
    "anyOf doubles": judging(doubling(60, "anyOf"), '"x"', *COSTLY),
    "oneOf doubles": judging(doubling(60, "oneOf"), '"x"', *COSTLY),
    "the tree doubles": judging(TREE, DEEP, *COSTLY),
    "if doubles": judging(doubling_if(40), '"x"', *COSTLY),
    "unevaluatedProperties, level by level": judging(
        nested(24, lambda inner: {"anyOf": [inner], "unevaluatedProperties": False}, {"properties": {}}),
        {"a": 1},
        *COSTLY,
    ),
    "unevaluatedProperties above what doubles": refused(
        {**doubling(60, "allOf"), "unevaluatedProperties": False}, LEFT
    ),
    "unevaluatedItems above what doubles": refused({**doubling(60, "oneOf"), "unevaluatedItems": {}}, LEFT),
    "unevaluatedItems, level by level": judging(
        nested(24, lambda inner: {"allOf": [inner], "unevaluatedItems": False}, {}), [1], *COSTLY
    ),
    # patterns
    "backtracking": judging({"pattern": "^(a+)+$"}, json.dumps("a" * 5000 + "b"), "failed"),
    "backtracking by reference": judging({"pattern": "^(?:(a+)\\1?)+$"}, json.dumps("a" * 400 + "c"), *COSTLY),
    "backtracking by lookahead": judging(
        {"pattern": "^(?:(?=(a+))\\1)+b$"}, json.dumps("a" * 5000 + "c"), "failed", *COSTLY
    ),
    "backtracking names": judging({"patternProperties": {"^(?:(a+)\\1?)+$": False}}, {"a" * 400 + "c": 1}, *COSTLY),
    "backtracking in every item": judging(
        {"items": {"not": {"pattern": "^(?:(a+)\\1?)+$"}}}, ["a" * 9 + "c"] * (LONG // 13), *COSTLY
    ),
    "a pattern of a milliard": refused({"pattern": "(((a{999}){999}){999}){999}"}, "repeat too much"),
    "many patterns": refused({"anyOf": [{"pattern": f"a{n}"} for n in range(600)]}, "repeat too much"),
    "a pattern that is none": refused({"pattern": "(["}, "", f"{PLACE}.pattern"),
    # many and large
    "options that are objects": judging(
        {"items": {"enum": [{"a": n} for n in range(3000)]}}, [{"a": 2999}] * (LONG // 11), *COSTLY
    ),
    "a tiny divisor": judging({"multipleOf": 1e-300}, "1e300", "passed", "failed"),
    "a tiny divisor of many": judging({"items": {"multipleOf": 1e-300}}, [1e300] * (LONG // 7), *COSTLY),
    "a divisor of zero": refused({"multipleOf": 0}, "", f"{PLACE}.multipleOf"),
    "unique among many": judging({"uniqueItems": True}, list(range(60_000)), "passed", *COSTLY),
    "unique among many objects": judging({"uniqueItems": True}, [{"a": n} for n in range(30_000)], "passed", *COSTLY),
    "contains among many": judging(
        {"contains": {"const": -1}, "minContains": 2}, list(range(60_000)), "failed", *COSTLY
    ),
    "bounds beyond numbers": judging(
        Text('{"maximum": 1e308, "minLength": 99999999999999999999}'), "1", "passed", "failed"
    ),
    "a type that is none": refused({"type": "nothing"}, "", f"{PLACE}.type"),
    "100,000 properties": refused({"properties": {str(n): {"type": "integer"} for n in range(100_000)}}, TOO_LARGE, ""),
    "20,000 definitions": refused({"$defs": {str(n): {"not": False} for n in range(20_000)}}, "longer than"),
    "10,000 definitions": judging({"$defs": {str(n): {} for n in range(10_000)}}, "1", "passed"),
    "500,000 options": refused({"enum": [f"{n:x}" for n in range(500_000)]}, TOO_LARGE, ""),
    "30,000 options": refused({"enum": [f"option {n}" for n in range(30_000)]}, "longer than"),
    "8,000 options": judging({"enum": [f"option {n}" for n in range(8_000)]}, '"option"', "failed"),
    "7,000 options that are objects": judging(
        {"enum": [{"a": [n]} for n in range(7_000)]}, '{"a":[-1]}', "failed", *COSTLY
    ),
    "20,000 items": refused({"prefixItems": [True] * 20_000}, "parts"),
    "7,000 alternatives": refused({"anyOf": [{"const": n} for n in range(7_000)]}, "parts"),
    "4,500 alternatives": judging({"anyOf": [{"const": n} for n in range(4_500)]}, "-1", "failed", *COSTLY),
    "3,000 properties": judging(
        {"properties": {str(n): {"type": "integer"} for n in range(3000)}, "additionalProperties": False},
        {str(n): n for n in range(3001)},
        "failed",
    ),
    "nested 500 deep": refused(Text('{"not":' * 500 + "{}" + "}" * 500), "nested", ""),
    "nested 100,000 deep": refused(Text('{"not":' * 100_000 + "{}" + "}" * 100_000), "nested deeper", ""),
    # no schema
    "a text": refused("true", "", "config.schema"),
    "null": refused(None, "", "config.schema"),
    "a surrogate": refused({"const": "\ud800"}, "surrogate"),
    "keywords of the wrong type": refused({"required": "a"}, "", f"{PLACE}.required"),
}
