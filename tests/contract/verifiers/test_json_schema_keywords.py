"""`json_schema` by the specification: a case of our own for every keyword of draft 2020-12, judged by the whole kind.

Each case is a schema with answers that it accepts and answers that it refuses. KEYWORDS are those of the draft's
vocabularies: a keyword without a case fails.
"""

import json

import pytest

from verifiers.base import InvalidVerifier, Status
from verifiers.json_schema import KIND

DRAFT = "https://json-schema.org/draft/2020-12/schema"
KEYWORDS = {
    "core": "$id $schema $ref $anchor $dynamicRef $dynamicAnchor $vocabulary $comment $defs",
    "applicator": "prefixItems items contains additionalProperties properties patternProperties dependentSchemas "
    "propertyNames if then else allOf anyOf oneOf not",
    "unevaluated": "unevaluatedItems unevaluatedProperties",
    "validation": "type const enum multipleOf maximum exclusiveMaximum minimum exclusiveMinimum maxLength minLength "
    "pattern maxItems minItems uniqueItems maxContains minContains maxProperties minProperties required "
    "dependentRequired",
    "meta-data": "title description default deprecated readOnly writeOnly examples",
    "format": "format",
    "content": "contentEncoding contentMediaType contentSchema",
}
TREE = {
    "$dynamicAnchor": "node",
    "properties": {"value": {"type": "integer"}, "children": {"items": {"$dynamicRef": "#node"}}},
    "unevaluatedProperties": False,
}
DOG = {"properties": {"kind": {"const": "dog"}, "barks": {"type": "boolean"}}, "required": ["kind"]}
CAT = {"properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}}, "required": ["kind"]}

# keyword: (schema, answers that pass, answers that fail)
CASES = {
    "$id": [
        ({"$id": "https://example.com/s", "$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}}, [None], [0]),
        ({"properties": {"$id": {"type": "string"}}}, [{"$id": "x"}], [{"$id": 1}]),  # a name, no keyword
    ],
    "$schema": [
        ({"$schema": DRAFT, "prefixItems": [{"type": "null"}]}, [[None, 1]], [[1]]),
        ({"$schema": f"{DRAFT}#", "type": "null"}, [None], [1]),
        # the older drafts by their name: `items` as a list, `dependencies`, exclusiveMinimum as a switch
        ({"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "null"}]}, [[None, 1]], [[1]]),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "dependencies": {"a": ["b"]}}, [{"b": 1}], [{"a": 1}]),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True}, [2], [1]),
    ],
    "$ref": [
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}}, [None], [1]),
        ({"$ref": "#/$defs/a~1b~0c", "$defs": {"a/b~c": {"type": "null"}}}, [None], [1]),
        ({"$ref": "#/$defs/a%25b", "$defs": {"a%b": {"type": "null"}}}, [None], [1]),
        ({"$ref": "#/allOf/1", "allOf": [True, {"type": "null"}]}, [None], [1]),
        # beside other keywords, which count too
        ({"$ref": "#/$defs/a", "maximum": 9, "$defs": {"a": {"minimum": 1}}}, [5], [0, 10]),
        ({"properties": {"next": {"$ref": "#"}}, "additionalProperties": False}, [{"next": {"next": {}}}], [{"x": 1}]),
        ({"properties": {"next": {"$ref": "#"}}, "additionalProperties": False}, [], [{"next": {"next": {"x": 1}}}]),
    ],
    "$anchor": [({"$ref": "#a", "$defs": {"x": {"$anchor": "a", "type": "null"}}}, [None], [1])],
    "$dynamicRef": [
        (TREE, [{"value": 1, "children": [{"value": 2}]}], [{"children": [{"value": "2"}]}, {"children": [{"x": 1}]}]),
        ({"$dynamicRef": "#/$defs/a", "$defs": {"a": {"type": "null"}}}, [None], [1]),
        ({"$dynamicRef": "#a", "$defs": {"x": {"$anchor": "a", "type": "null"}}}, [None], [1]),
    ],
    "$dynamicAnchor": [({"$ref": "#a", "$defs": {"x": {"$dynamicAnchor": "a", "type": "null"}}}, [None], [1])],
    "$vocabulary": [({"$vocabulary": {"https://example.com/unknown": True}, "type": "null"}, [None], [1])],
    "$comment": [({"$comment": "type: integer", "type": "null"}, [None], [1])],
    "$defs": [({"$defs": {"a": {"type": "integer"}, "b": False}}, [None, 1, "x"], [])],  # binds nothing by itself
    "prefixItems": [
        ({"prefixItems": [{"type": "integer"}, {"type": "null"}]}, [[], [1], [1, None], [1, None, "x"], "x"], [[None]]),
        ({"prefixItems": [True, False]}, [[1]], [[1, 2]]),
    ],
    "items": [
        ({"items": {"type": "integer"}}, [[], [1, 2], {"0": "x"}], [[1, "x"]]),
        ({"prefixItems": [True], "items": {"type": "integer"}}, [["x"], ["x", 1]], [["x", "x"]]),
        ({"items": False}, [[], "x"], [[1]]),
    ],
    "contains": [
        ({"contains": {"type": "integer"}}, [["x", 1], "x", {}], [[], ["x"]]),
        ({"contains": False}, ["x"], [[], [1]]),
    ],
    "minContains": [
        ({"contains": {"const": 1}, "minContains": 2}, [[1, 1], [1, 2, 1]], [[1], [], [1, 2]]),
        ({"contains": {"const": 1}, "minContains": 0}, [[], [2]], []),
        ({"minContains": 2}, [[], [1]], []),  # without `contains` it says nothing
    ],
    "maxContains": [
        ({"contains": {"const": 1}, "maxContains": 1}, [[1], [1, 2]], [[1, 1], []]),
        ({"contains": {"const": 1}, "minContains": 0, "maxContains": 1}, [[], [1]], [[1, 1]]),
        ({"maxContains": 0}, [[1]], []),
    ],
    "additionalProperties": [
        ({"properties": {"a": True}, "additionalProperties": False}, [{}, {"a": 1}, [1]], [{"b": 1}]),
        ({"patternProperties": {"^x": True}, "additionalProperties": {"type": "null"}}, [{"x1": 1, "b": None}],
         [{"b": 1}]),
        # it sees nothing of what stands in another subschema
        ({"allOf": [{"properties": {"a": True}}], "additionalProperties": False}, [{}], [{"a": 1}]),
    ],
    "properties": [
        ({"properties": {"a": {"type": "integer"}, "b": False}}, [{}, {"a": 1}, {"c": 1}, [1], "a"], [{"a": "x"},
         {"b": 1}]),
        ({"properties": {"__proto__": {"type": "null"}, "": {"type": "null"}}}, [{"": None}], [{"": 1},
         {"__proto__": 1}]),
    ],
    "patternProperties": [
        ({"patternProperties": {"^n_": {"type": "integer"}}}, [{"n_a": 1, "x": "y"}, {}], [{"n_a": "x"}]),
        ({"patternProperties": {"b": {"type": "integer"}}}, [{"a": "x"}], [{"abc": "x"}]),  # anywhere in the name
        ({"patternProperties": {"a": {"minimum": 1}, "b": {"maximum": 2}}}, [{"ab": 1}], [{"ab": 0}, {"ab": 3}]),
    ],
    "dependentSchemas": [
        ({"dependentSchemas": {"a": {"required": ["b"]}}}, [{}, {"b": 1}, {"a": 1, "b": 1}, ["a"]], [{"a": 1}]),
        ({"dependentSchemas": {"a": False}}, [{"b": 1}], [{"a": 1}]),
    ],
    "propertyNames": [
        ({"propertyNames": {"pattern": "^[a-z]+$"}}, [{}, {"ab": 1}, ["A"]], [{"A": 1}, {"ab": 1, "": 1}]),
        ({"propertyNames": {"maxLength": 2}}, [{"ab": 1}], [{"abc": 1}]),
        ({"propertyNames": False}, [{}], [{"a": 1}]),
    ],
    "if": [
        ({"if": {"type": "integer"}, "then": {"minimum": 0}, "else": {"type": "string"}}, [0, "x"], [-1, None]),
        ({"if": False}, [1], []),
    ],
    "then": [
        ({"if": {"required": ["a"]}, "then": {"required": ["b"]}}, [{}, {"a": 1, "b": 1}], [{"a": 1}]),
        ({"then": False}, [1], []),  # without `if` it says nothing
    ],
    "else": [
        ({"if": {"required": ["a"]}, "else": {"required": ["b"]}}, [{"a": 1}, {"b": 1}], [{}]),
        ({"else": False}, [1], []),
    ],
    "allOf": [({"allOf": [{"minimum": 1}, {"maximum": 2}, True]}, [1, 2], [0, 3]), ({"allOf": [True, False]}, [], [1])],
    "anyOf": [({"anyOf": [{"type": "null"}, {"minimum": 5}]}, [None, 5, "x"], [1]), ({"anyOf": [False]}, [], [1])],
    "oneOf": [
        ({"oneOf": [{"multipleOf": 2}, {"multipleOf": 3}]}, [2, 3], [6, 1]),
        ({"oneOf": [DOG, CAT]}, [{"kind": "dog", "barks": True}], [{"kind": "dog", "barks": 1}, {"kind": "cow"}, {}]),
        ({"oneOf": [True, True]}, [], [1]),
    ],
    "not": [
        ({"not": {"type": "integer"}}, ["x", 1.5], [1, 1.0]),
        ({"not": {"not": {"type": "null"}}}, [None], [1]),
        ({"not": {}}, [], [1, None]),
    ],
    "unevaluatedItems": [
        ({"prefixItems": [True], "unevaluatedItems": False}, [[], [1]], [[1, 2]]),
        ({"allOf": [{"prefixItems": [True]}], "unevaluatedItems": {"type": "null"}}, [[1, None]], [[1, 2]]),
        ({"contains": {"type": "integer"}, "unevaluatedItems": False}, [[1, 2]], [[1, "x"]]),
        ({"items": True, "unevaluatedItems": False}, [[1, 2]], []),
        ({"if": {"prefixItems": [{"const": 1}]}, "unevaluatedItems": False}, [[1]], [[2]]),
    ],
    "unevaluatedProperties": [
        ({"allOf": [{"properties": {"a": True}}], "unevaluatedProperties": False}, [{"a": 1}], [{"a": 1, "b": 1}]),
        ({"anyOf": [DOG, CAT], "unevaluatedProperties": False}, [{"kind": "cat", "lives": 9}], [{"kind": "cat",
         "barks": True}]),
        ({"$ref": "#/$defs/a", "unevaluatedProperties": False, "$defs": {"a": DOG}}, [{"kind": "dog"}],
         [{"kind": "dog", "x": 1}]),
        ({"dependentSchemas": {"a": {"properties": {"b": True}}}, "properties": {"a": True},
         "unevaluatedProperties": False},
         [{"a": 1, "b": 1}], [{"b": 1}]),
        ({"not": {"properties": {"a": False}}, "unevaluatedProperties": False}, [], [{"a": 1}]),
        ({"unevaluatedProperties": {"type": "integer"}}, [{"a": 1}], [{"a": "x"}]),
    ],
    "type": [
        ({"type": "integer"}, [1, 1.0, -0.0, 10**30, 1e300], [1.5, "1", True, None]),
        ({"type": "number"}, [1, 1.5], [True, "1"]),
        ({"type": "boolean"}, [True, False], [0, 1, "true"]),
        ({"type": "null"}, [None], [0, "", False]),
        ({"type": "string"}, ["", "x"], [1, None]),
        ({"type": "array"}, [[], [1]], [{}, "[]"]),
        ({"type": "object"}, [{}, {"a": 1}], [[], "{}"]),
        ({"type": ["integer", "null"]}, [1, None], ["x", 1.5]),
    ],
    "const": [
        ({"const": 1}, [1, 1.0], [True, "1", [1]]),
        ({"const": False}, [False], [0, None, ""]),
        ({"const": None}, [None], [0, False]),
        ({"const": {"a": [1, {"b": 2}]}}, [{"a": [1.0, {"b": 2}]}], [{"a": [True, {"b": 2}]}, {"a": [{"b": 2}, 1]}]),
        ({"const": 2**53 + 1}, [2**53 + 1], [2**53]),
        ({"const": "\u00e9"}, ["\u00e9"], ["e\u0301"]),  # not normalised
    ],
    "enum": [
        ({"enum": [1, "a", None, [2]]}, [1, 1.0, "a", None, [2]], ["1", True, [2, 2], {}]),
        ({"enum": [0]}, [0, 0.0], [False]),
        ({"enum": [True]}, [True], [1]),
        ({"enum": [{"a": 1, "b": 2}]}, [{"b": 2, "a": 1}], [{"a": 1}]),
    ],
    "multipleOf": [
        ({"multipleOf": 3}, [0, 9, -3, 9.0, "x"], [1, 4.5]),
        ({"multipleOf": 0.01}, [0.07, 19.99, 4.02, 1], [0.075, 19.999]),  # which binary fractions alone get wrong
        ({"multipleOf": 0.1}, [0.3, 1.1, 123456789.1], [0.35]),
        ({"multipleOf": 1e-8}, [12391239123, 1e-8], [1e-9]),
        ({"multipleOf": 2}, [10**30], [10**30 + 1]),
    ],
    "maximum": [({"maximum": 3}, [3, 3.0, -9, "x", [9]], [3.1, 4]), ({"maximum": 0.1}, [0.1], [0.1000001])],
    "exclusiveMaximum": [({"exclusiveMaximum": 3}, [2.9], [3, 3.0, 10**30])],
    "minimum": [({"minimum": 3}, [3, "x"], [2.9, -(10**30)]), ({"minimum": 2**53 + 1}, [2**53 + 1], [2**53])],
    "exclusiveMinimum": [({"exclusiveMinimum": 3}, [3.1], [3, 3.0])],
    "maxLength": [({"maxLength": 2}, ["", "ab", "\U0001f600\U0001f600", 123], ["abc", "e\u0301x"])],
    "minLength": [({"minLength": 2}, ["ab", 1], ["", "a", "\U0001f600"])],
    "pattern": [
        ({"pattern": "b+"}, ["abc", 1], ["ac"]),  # anywhere
        ({"pattern": "^\\d{2}$"}, ["12"], ["123", "\u0661\u0662", "12\n"]),  # \d is ASCII, $ is the end
        ({"pattern": "^(?!no)"}, ["yes"], ["no"]),
        ({"pattern": "^(a)\\1$"}, ["aa"], ["ab"]),
    ],
    "maxItems": [({"maxItems": 1}, [[], [1], "xx"], [[1, 2]])],
    "minItems": [({"minItems": 1}, [[1], ""], [[]])],
    "uniqueItems": [
        ({"uniqueItems": True}, [[], [1, "1", True], [[1], [2]], [0, False]], [[1, 1.0], [{"a": 1, "b": 2},
         {"b": 2, "a": 1}]]),
        ({"uniqueItems": False}, [[1, 1]], []),
    ],
    "maxProperties": [({"maxProperties": 1}, [{}, {"a": 1}, [1, 2]], [{"a": 1, "b": 2}])],
    "minProperties": [({"minProperties": 1}, [{"a": 1}, []], [{}])],
    "required": [({"required": ["a", "b"]}, [{"a": None, "b": 1}, ["a"]], [{"a": 1}, {}]), ({"required": []}, [{}],
    [])],
    "dependentRequired": [({"dependentRequired": {"a": ["b"]}}, [{}, {"b": 1}, {"a": 1, "b": 1}], [{"a": 1}])],
    "contentEncoding": [({"contentEncoding": "base64"}, ["!!", "eA=="], [])],  # in this draft content* is annotation
    "contentMediaType": [({"contentMediaType": "application/json"}, ["{", "{}"], [])],
    "contentSchema": [
        ({"contentMediaType": "application/json", "contentSchema": {"type": "null"}}, ["1", "null"], []),
    ],
    **{
        name: [({name: value, "type": "null"}, [None], [1])]
        for name, value in {
            "title": "t", "description": "d", "default": 5, "deprecated": True, "readOnly": True, "writeOnly": True,
            "examples": [5],
        }.items()
    },
}  # fmt: skip

# format is asserted: (passes, fails) for every format that the draft names
FORMATS = {
    "date-time": (
        ["2024-02-29T12:00:00Z", "2024-02-29T12:00:00.5+01:00"],
        ["2023-02-29T12:00:00Z", "2024-01-01 12:00"],
    ),
    "date": (["2024-02-29"], ["2023-02-29", "24-01-01", "2024-1-1", "\u0662024-01-01"]),
    "time": (["12:00:00Z", "23:59:60Z"], ["12:00:00", "25:00:00Z"]),
    "duration": (["P1Y2M", "PT1H", "P3W"], ["1Y", "P", "P1D2W"]),
    "email": (["a@example.com"], ["a", "a@", "@b"]),
    "idn-email": (["\uc2e4\ub840@\uc2e4\ub840.\ud14c\uc2a4\ud2b8"], ["\uc2e4"]),
    "hostname": (["example.com"], ["-a.com", "a_b.com", "a" * 64 + ".com"]),
    "idn-hostname": (["\uc2e4\ub840.\ud14c\uc2a4\ud2b8"], ["\u302e\uc2e4\ub840.\ud14c"]),
    "ipv4": (["127.0.0.1"], ["127.0.0.01", "256.0.0.1", "1.2.3", "0x7f.0.0.1"]),
    "ipv6": (["::1", "1:2:3:4:5:6:7:8"], ["::1%eth0", "1:2", "12345::"]),
    "uri": (["https://example.com/?q=1#f", "urn:a:b"], ["//example.com", "a b", "http://\u00e9"]),
    "uri-reference": (["/a?b", "#x"], ["\\\\a", "#a#b"]),
    "iri": (["http://\u00e9.example/"], ["/\u00e9", "a b"]),
    "iri-reference": (["/\u00e9"], ["\\\\\u00e9"]),
    "uuid": (["2eb8aa08-aa98-11ea-b4aa-73b441d16380"], ["2eb8aa08aa9811eab4aa73b441d16380", "x"]),
    "uri-template": (["/a/{b}"], ["/a/{b"]),
    "json-pointer": (["/a~1b", ""], ["a", "/a~"]),
    "relative-json-pointer": (["1/a", "0#"], ["/a", "-1/a"]),
    "regex": (["a+"], ["a(", "\\a"]),
}
CASES["format"] = [
    *(({"format": name}, [*passes, 5, None], fails) for name, (passes, fails) in FORMATS.items()),
    ({"format": "no such format"}, ["x"], []),
]
WHOLE = [(True, [1, None, {}], []), (False, [], [1, None, {}]), ({}, [1, None, {}], [])]


def judge(schema, text, **config):
    judging = KIND.compile_checked({"schema": schema, **config}).verify({}, {"content": text}, {})
    with pytest.raises(StopIteration) as stopped:
        judging.send(None)
    return stopped.value.value.status


ROWS = [pytest.param(*case, id=f"{keyword}-{at}") for keyword, cases in CASES.items() for at, case in enumerate(cases)]


@pytest.mark.parametrize(("schema", "passes", "fails"), [*ROWS, *WHOLE])
def test_accepts_and_refuses(schema, passes, fails):
    for values, status in ((passes, Status.PASSED), (fails, Status.FAILED)):
        for value in values:
            assert judge(schema, json.dumps(value)) is status, value


@pytest.mark.parametrize("vocabulary", KEYWORDS)
def test_every_keyword_has_cases(vocabulary):
    for keyword in KEYWORDS[vocabulary].split():
        cases = CASES[keyword]
        assert all(keyword in json.dumps(schema) for schema, _, _ in cases)
        assert any(passes for _, passes, _ in cases), keyword
        if vocabulary != "content" and keyword != "$defs":  # which bind nothing by themselves
            assert any(fails for _, _, fails in cases), keyword


def test_no_case_is_of_another_draft():
    assert CASES.keys() == {keyword for several in KEYWORDS.values() for keyword in several.split()}


OUTSIDE = [
    "http://127.0.0.1:1/s", "https://example.com/s#/a", "file:///etc/passwd", "other.json", "other.json#/a", "/s",
    "//h/s",
    "?x", "urn:example:s", "urn:uuid:deadbeef-1234-00ff-ff00-4321feebdaed", DRAFT, "data:application/json,{}",
    "#nowhere",
    "#/$defs/nowhere", "", " #", "\u2028",
]  # fmt: skip


@pytest.mark.parametrize("reference", OUTSIDE)
@pytest.mark.parametrize("keyword", ["$ref", "$dynamicRef"])
def test_nothing_outside_is_referred_to(keyword, reference):
    for schema in ({keyword: reference}, {"properties": {"a": {"anyOf": [{keyword: reference}]}}}):
        with pytest.raises(InvalidVerifier) as caught:
            KIND.compile_checked({"schema": schema})
        assert caught.value.where.startswith("/schema")


@pytest.mark.parametrize("name", ["http://127.0.0.1:1/meta", "file:///etc/passwd", "urn:example:meta", "meta.json"])
def test_no_other_draft_is_fetched(name):
    with pytest.raises(InvalidVerifier):
        KIND.compile_checked({"schema": {"$schema": name}})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "text"}, {"type": []}, {"required": "a"}, {"required": ["a", "a"]}, {"minLength": -1},
        {"minLength": 1.5},
        {"multipleOf": 0}, {"pattern": "("}, {"patternProperties": {"(": True}}, {"enum": 5}, {"items": [True]},
        {"allOf": []}, {"anyOf": {}}, {"properties": []}, {"properties": {"a": 5}}, {"$defs": {"a": 5}}, {"title": 5},
        {"$anchor": "a b"}, {"$comment": 5}, {"$vocabulary": 5}, {"dependentRequired": {"a": "b"}}, {"not": None},
        {"$ref": 5}, {"format": 5}, {"uniqueItems": "yes"}, {"prefixItems": []}, {"$id": "#a"}, {"examples": 5},
        {"properties": {"a": {"$id": "https://example.com/inside"}}}, {"maximum": "5"}, {"contentEncoding": 5},
    ],
)  # fmt: skip
def test_a_schema_that_is_none_is_refused(schema):
    with pytest.raises(InvalidVerifier) as caught:
        KIND.compile_checked({"schema": schema})
    assert caught.value.where.startswith("/schema")


FENCED = [
    ("```json\n1\n```", True), ("```\n1\n```", True), ("```JSON\n1```", True), (" \n```json \n1\n```\n ", True),
    ("```json\r\n1\r\n```", True), ("```json5\n1\n```", False), ("```json 1 ```", False), ("```json\n1\n``", False),
    ("```json\n1\n```\nDone.", False), ("Here:\n```json\n1\n```", False), ("```json\n1\n```\n```json\n1\n```", False),
    ("~~~json\n1\n~~~", False), ("````json\n1\n````", False), ("`1`", False), ("```json\n```", False),
]  # fmt: skip


@pytest.mark.parametrize(("text", "passes"), FENCED)
def test_the_whole_answer_may_be_one_fenced_block(text, passes):
    assert judge({"const": 1}, text) is (Status.PASSED if passes else Status.FAILED)
    assert judge({"const": 1}, text, fenced=False) is Status.FAILED


@pytest.mark.parametrize(
    "text",
    ["NaN", "Infinity", "-Infinity", "1e999", "01", "1.", ".5", "+1", "0x1", "1_0", "\u0661", "'a'", "{a: 1}",
     '{"a": 1,}',
     "[1,]", "// x\n1", "1 2", "1\x0b", "\ufeff1", "True", "None", '"\\ud800"', '"a\nb"', '"\\x41"', '{"a": 1, "a": 2}',
     '{"a": 1, "\\u0061": 1}', "[" * 101 + "]" * 101, "1" * 5000],
)  # fmt: skip
def test_only_strict_json_is_read(text):
    assert judge(True, text) is Status.FAILED
