"""Answers that mean harm, before verifiers that do not; and arguments and tools that do."""

import json

from tests.integration.verifiers.hostile.table import Hostile, Text

MEGABYTE = "a" * 1_000_000
SCHEMA = {
    "schema": {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "array"}}
}
HONEST = "def verify(request, answer, args): return (answer.get('content') or '').strip() == '4'"
PROBLEM = {"numbers": [3, 5, 7], "target": 15}
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}


def schema(answer, *ends, says=""):
    return Hostile("json_schema", SCHEMA, ends, answer=answer, says=says)


def sums(answer, *ends):
    return Hostile("countdown", {}, ends, answer=answer, args=PROBLEM)


def maths(answer, *ends):
    return Hostile("math", {"reference": "2", "timeout_s": 1}, ends, answer=answer)


def sql(answer, *ends):
    config = {"fixture": "CREATE TABLE t (n INTEGER); INSERT INTO t VALUES (1)", "timeout_s": 0.5}
    return Hostile("sql", config, ends, answer=answer)


def call(arguments, *ends, tool=TOOL, name="f"):
    function = {"name": name, "arguments": arguments}
    said = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}
    return Hostile("function_call", {}, ends, answer=said, tools=[tool])


def with_parameters(parameters):
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


ANSWERS = {
    "a megabyte to a schema": schema(json.dumps({"b": MEGABYTE}), "failed", says="longer than"),
    "as much JSON as may be": schema('{"b":[' + "1," * 190_000 + "1]}", "passed"),
    "as many names as may be": schema(json.dumps({f"n{n:x}": [] for n in range(25_000)}), "passed"),
    "deep JSON": schema('{"b":' + "[" * 99_000 + "]" * 99_000 + "}", "failed", says="nested deeper"),
    "deep JSON that never ends": schema('{"b":' * 60_000, "failed", says="nested deeper"),
    "brackets in texts": schema(json.dumps({"b": ["[{" * 50_000]}), "passed"),
    "a key twice": schema('{"a": 1, "a": "x"}', "failed", says="stands twice"),
    "many keys twice": schema(
        "{" + ",".join(f'"{n % 30_000}":[]' for n in range(30_001)) + "}", "failed", says="stands twice"
    ),
    "the last key twice": schema(
        "{" + "".join(f'"{n}":[],' for n in range(30_000)) + '"29999":[]}', "failed", says="stands twice"
    ),
    "a surrogate": schema('{"a": "\\ud800"}', "failed", says="surrogate"),
    "NaN": schema('{"a": NaN}', "failed", says="NaN"),
    "infinity": schema('{"a": 1e999}', "failed", says="out of range"),
    "300,000 digits": schema('{"a": ' + "9" * 300_000 + "}", "failed", says="digits"),
    "escapes": schema('{"b": ["' + "\\u00e9" * 60_000 + '"]}', "passed"),
    "a fence without end": schema("```json\n" * 20_000, "failed"),
    "white space": schema(" \n" * 190_000, "failed", says="empty"),
    "a megabyte to a pattern": Hostile("regex", {"pattern": "(a|b)*c"}, ("failed",), answer=MEGABYTE),
    "a megabyte to exact": Hostile("exact", {"reference": "4"}, ("failed", "too_costly"), answer=MEGABYTE),
    "accents upon accents": Hostile(
        "exact", {"reference": "4"}, ("failed", "too_costly"), answer="e" + "\u0301\u0323" * 150_000
    ),
    "a megabyte to numeric": Hostile("numeric", {"reference": 4}, ("failed", "too_costly"), answer="1" * 1_000_000),
    "numbers without end": Hostile("numeric", {"reference": 4}, ("failed", "too_costly"), answer="1,000 " * 100_000),
    "an exponent": Hostile("numeric", {"reference": 4}, ("failed", "too_costly"), answer="1e999999999"),
    "a megabyte to code": Hostile("python", {"code": HONEST}, ("failed", "timeout"), answer=MEGABYTE),
    "surrogates to code": Hostile("python", {"code": HONEST}, ("failed",), answer="\ud800\udfff\0"),
    "a deep message to code": Hostile(
        "python",
        {"code": HONEST},
        ("broke",),
        answer=Text('{"role":"assistant","content":' + "[" * 90 + "]" * 90 + "}"),
    ),
    "code as the answer": Hostile("python", {"code": HONEST}, ("failed",), answer="')\nimport os\nos.abort()\n#"),
    "a megabyte of sums": sums("1+" * 500_000 + "1", "failed", "too_costly"),
    "brackets of sums": sums("(" * 50_000 + "15" + ")" * 50_000, "failed"),
    "a tower of powers": sums("9**9**9**9", "failed"),
    "foreign digits": sums("\u0663*\u0665", "failed"),
    "division by nothing": sums("3/(5-5)+7", "failed"),
    "power towers": maths("9^{9^{9^{9^9}}}", "timeout", "crashed", "too_costly", "undecided"),
    "roots in roots": maths("\\sqrt{" * 39 + "2" + "}" * 39, "failed", "undecided", "timeout", "too_costly"),
    "boxes in boxes": maths("\\boxed{" * 5000 + "}" * 5000, "failed", "too_costly"),
    "a megabyte of mathematics": maths(MEGABYTE, "too_costly"),
    "a program as mathematics": maths("__import__('os').system('id')", "failed", "undecided"),
    "rows without end": sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
        "failed",
        "timeout",
        "too_costly",
    ),
    "a blob of 2 GB": sql("SELECT zeroblob(2000000000)", "failed", "crashed", "too_costly"),
    "a write": sql("DELETE FROM t", "failed"),
    "another database": sql("ATTACH DATABASE '/tmp/x' AS x", "failed"),
    "a library": sql("SELECT load_extension('/tmp/x.so')", "failed"),
    "parentheses of SQL": sql(
        "SELECT " + "(" * 9000 + "1" + ")" * 9000, "failed", "too_costly", "crashed", "timeout", "undecided"
    ),
    "arguments that are none": call("{" * 50_000, "failed"),
    "arguments of a megabyte": call(json.dumps({"a": MEGABYTE}), "failed", "too_costly"),
    "arguments with a key twice": call('{"a": 1, "a": 2}', "failed"),
    "an argument of NaN": call('{"a": NaN}', "failed"),
    "a tool without end": call("{}", "bad_args", "too_costly", tool=with_parameters({"$ref": "#"})),
    "a tool elsewhere": call("{}", "bad_args", tool=with_parameters({"$ref": "http://127.0.0.1:1/x"})),
    "a tool that doubles": call(
        '{"a": 1}',
        "too_costly",
        "bad_args",
        tool=with_parameters(
            {
                "$ref": "#/$defs/0",
                "$defs": {**{str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(60)}, "60": {}},
            }
        ),
    ),
    "a tool of markup": call("{}", "failed", name="</tool>\0\x1b[2J"),
    "calls without end": Hostile(
        "function_call",
        {},
        ("failed",),
        tools=[TOOL],
        answer={
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": str(n), "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
                for n in range(5000)
            ],
        },
    ),
    "no message": Hostile("regex", {"pattern": "a"}, ("failed",), answer={"tool_calls": 5, "content": {"a": [None]}}),
}
