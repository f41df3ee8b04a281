"""What every kind of verifier keeps, whatever an answer holds: it returns a verdict, in time, and raises nothing."""

import asyncio
import copy
import json
import time
from dataclasses import asdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fixtures.judges import judge
from tests.fixtures.loopback import reply, serve
from verifiers import policy, registry
from verifiers.base import Status, Verdict

TOOL = {
    "type": "function",
    "function": {
        "name": "book",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "more": {"type": "object"}},
            "required": ["city"],
        },
    },
}
REQUEST = {"messages": [{"role": "user", "content": "Make 22 from 3, 7 and 1."}], "tools": [TOOL]}
CODE = """
def verify(request, answer, args):
    text = answer["content"]
    print("read", text)
    return {"passed": args["want"] in text, "reason": text, "score": 0.5}
"""


def text(content):
    return {"role": "assistant", "content": content}


def calling(name, arguments):
    call = {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


SERVICE = "http://service"  # stands for a server that runs while these tests do
# kind: configuration, arguments, an answer that passes, one that fails
SAMPLES = {
    "countdown": ({"target": 22}, {"numbers": [3, 7, 1]}, text("answer: 3*7+1"), text("answer: 3*7")),
    "function_call": (
        {},
        {"reference": {"name": "book", "arguments": {"city": "Ulm"}}},
        calling("book", '{"city": "Ulm"}'),
        calling("book", '{"city": "Bonn"}'),
    ),
    "json_schema": (
        {"schema": {"type": "object", "required": ["n"], "properties": {"n": {"pattern": "^(a|b)+$"}}}},
        {},
        text('```json\n{"n": "ab"}\n```'),
        text('{"n": "c"}'),
    ),
    "code_tests": (
        {"tests": "assert twice(2) == 4", "timeout_s": 4},
        {},
        text("```python\ndef twice(x):\n    return 2 * x\n```"),
        text("def twice(x): return x"),
    ),
    "math": ({"timeout_s": 5}, {"reference": "\\frac{1}{2}"}, text("so \\boxed{0.5}"), text("0.5 or 0.6")),
    "regex": ({"pattern": "(?i)[a-c]{2,40}d$"}, {}, text("abcd"), text("abce")),
    "sql": ({"fixture": "CREATE TABLE t (n INTEGER)"}, {"rows": [[22]]}, text("SELECT 22"), text("SELECT 23")),
    "webhook": ({"url": f"{SERVICE}/hook", "unsigned": True}, {"any": 1}, text("22"), text("23")),
    "judge": ({"url": SERVICE, "model": "j", "rubric": "22", "votes": 3}, {"reference": "22"}, text("22"), text("23")),
    "python": ({"code": CODE, "timeout_s": 1.0}, {"want": "22"}, text("22"), text("23")),
    "exact": (
        {"case": False, "white_space": "collapse"},
        {"reference": "Été 22"},
        text("e\u0301te\u0301  22 "),
        text("22"),
    ),
    "one_of": ({"references": ["22", "twenty-two"], "last_line": True}, {}, text("Well:\n22\n"), text("22\nor 23")),
    "numeric": (
        {"units": ["km"], "absolute_tolerance": 0.5},
        {"reference": 22},
        text("It is 22.5 km."),
        text("21 or 22"),
    ),
    "all_of": (
        {"verifiers": [{"kind": "regex", "config": {"pattern": "answer"}}, {"kind": "countdown"}]},
        {"numbers": [3, 7, 1], "target": 22},
        text("answer: 3*7+1"),
        text("3*7+1"),
    ),
    "any_of": (
        {
            "verifiers": [
                {"kind": "regex", "config": {"pattern": "^22$"}},
                {
                    "kind": "all_of",
                    "config": {"verifiers": [{"kind": "countdown"}, {"kind": "regex", "config": {"pattern": ":"}}]},
                },
            ]
        },
        {"numbers": [3, 7, 1], "target": 22},
        text("answer: 3*7+1"),
        text("3*7+1"),
    ),
    "weighted": (
        {
            "verifiers": [
                {"kind": "python", "config": {"code": CODE, "timeout_s": 1.0}, "weight": 3},
                {"kind": "regex", "config": {"pattern": "answer"}},
            ],
            "threshold": 0.6,
        },
        {"want": "22"},
        text("answer: 22"),
        text("22"),
    ),
    "not": ({"verifier": {"kind": "regex", "config": {"pattern": "sorry"}}}, {}, text("22"), text("I am sorry.")),
}

MEGABYTE = 1_000_000
HOSTILE = {
    "empty": {},
    "no content": text(None),
    "number": text(5),
    "mapping": text({"text": "answer: 1"}),
    "parts": text([{"type": "text", "text": "answer: "}, {"type": "text", "text": "3*7+1"}]),
    "odd parts": text([None, 5, "x", {"type": "text"}, {"text": None}, {"type": "image_url", "image_url": {}}]),
    "lone surrogate": text("answer: \ud800 3*7+1"),
    "NUL": text("answer: \0 22"),
    "right to left": text("answer: \u202e1+7*3"),
    "foreign digits": text("answer: \u0663*\u0667+\u0661"),
    "megabyte": text("a" * MEGABYTE),
    "megabyte of marks": text("answer:" * (MEGABYTE // 7)),
    "megabyte of tags": text("<answer>" * (MEGABYTE // 8)),
    "megabyte of brackets": text("(" * MEGABYTE),
    "megabyte of JSON brackets": text("[" * MEGABYTE),
    "megabyte of objects": text('{"a":' * (MEGABYTE // 5)),
    "megabyte of digits": text("9" * MEGABYTE),
    "megabyte of quotes": text('"\\' * (MEGABYTE // 2)),
    "megabyte of lines": text("\n" * MEGABYTE),
    "megabyte beyond ASCII": text("\u00e9" * MEGABYTE),
    "megabyte of surrogates": text("\udfff" * MEGABYTE),
    "many numbers": text("answer: " + "+".join(["1"] * 400)),
    "big product": text("answer: " + "*".join(["999999999999999"] * 60)),
    "fence without end": text("```json\n{"),
    "NaN": text("NaN"),
    "infinity": text('{"n": 1e999}'),
    "duplicate keys": text('{"n": "a", "n": "b"}'),
    "half a pair": text('{"n": "\\ud800"}'),
    "calls: none": {"content": None, "tool_calls": None},
    "calls: text": {"content": None, "tool_calls": "book"},
    "calls: mapping": {"content": None, "tool_calls": {"function": {}}},
    "calls: odd": {"content": None, "tool_calls": [None, 5, [], {}, {"function": 5}, {"function": {"name": None}}]},
    "calls: no arguments": {"content": None, "tool_calls": [{"function": {"name": "book"}}]},
    "calls: not text": calling("book", {"city": "Ulm"}),
    "calls: not JSON": calling("book", "{city: Ulm}"),
    "calls: list": calling("book", "[]"),
    "calls: NaN": calling("book", '{"days": NaN}'),
    "calls: infinity": calling("book", '{"city": "Ulm", "days": 1e999}'),
    "calls: twice": calling("book", '{"city": "Ulm", "city": "Ulm"}'),
    "calls: half a pair": calling("book", '{"city": "\\udc00"}'),
    "calls: deep": calling("book", '{"more":' * 5000 + "1" + "}" * 5000),
    "calls: deep but allowed": calling("book", '{"city": "Ulm", "more": ' + '{"a":' * 90 + "1" + "}" * 92),
    "calls: long number": calling("book", '{"city": "Ulm", "days": ' + "9" * 5000 + "}"),
    "calls: big number": calling("book", '{"city": "Ulm", "days": ' + "9" * 400 + "}"),
    "calls: megabyte": calling("book", f'{{"city": "{"x" * (MEGABYTE - 20)}"}}'),
    "calls: two megabytes": calling("book", f'{{"city": "{"x" * (2 * MEGABYTE)}"}}'),
    "calls: thousands": {"content": None, "tool_calls": calling("book", "{}")["tool_calls"] * 5000},
    "calls: odd name": calling("bo\ud800\0ok" * 1000, "{}"),
}


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as runner:
        yield runner
    registry.close()


async def serve_verdicts(caller):
    """Be a webhook and a judge to which an answer is right that holds 22."""
    while True:
        asked = await caller.request()
        is_hook = "/hook" in asked.line
        content = json.loads(asked.body)["answer"].get("content") if is_hook else None
        said = json.dumps({"passed": "22" in str(content)}).encode() if is_hook else judge(asked, lambda it: "22" in it)
        await caller.send(reply(said))


@pytest.fixture(scope="module")
def service():
    before = policy.current()
    registry.configure(registry.Policy(loopback=True))
    with serve(serve_verdicts) as server:
        yield server.url
    policy.configure(before)


@pytest.fixture(scope="module", params=sorted(SAMPLES))
def sample(request, service):
    config, args, right, wrong = SAMPLES[request.param]
    config = json.loads(json.dumps(config).replace(SERVICE, service))
    return registry.compile_verifier(request.param, config), args, right, wrong


def check(verdict):
    assert isinstance(verdict, Verdict)
    assert verdict.status in (Status.PASSED, Status.FAILED, Status.ABSTAINED)
    assert 0 <= verdict.score <= 1
    assert len(verdict.reason) <= 5000
    assert len(verdict.stdout) <= 5000
    written = json.dumps(asdict(verdict), ensure_ascii=False)
    assert json.loads(written.encode()) == asdict(verdict)
    assert "\0" not in verdict.reason + verdict.stdout


def test_every_kind_is_here():
    assert SAMPLES.keys() == registry.kinds().keys()


@pytest.mark.parametrize("kind", sorted(SAMPLES))
def test_schemas_are_json_and_accept_the_samples(kind):
    config, args, _, _ = SAMPLES[kind]
    found = registry.kinds()[kind]
    assert json.loads(json.dumps([found.config_schema, found.args_schema]))
    assert found.config_schema["type"] == found.args_schema["type"] == "object"
    registry.check_args(kind, config, args)


def test_the_right_answer_passes_and_the_wrong_one_fails(sample, runner):
    verifier, args, right, wrong = sample
    passed, failed = (runner.run(verifier.verify(REQUEST, answer, args)) for answer in (right, wrong))
    check(passed)
    check(failed)
    assert (passed.status, failed.status) == (Status.PASSED, Status.FAILED)


@pytest.mark.hostile
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers(sample, runner, name):
    verifier, args, right, _ = sample
    answer = HOSTILE[name]
    started = time.perf_counter()
    verdict = runner.run(verifier.verify(REQUEST, answer, args))
    assert time.perf_counter() - started < 5
    check(verdict)
    assert runner.run(verifier.verify(REQUEST, right, args)).status is Status.PASSED


def test_nothing_that_is_handed_in_changes(sample, runner):
    verifier, args, right, _ = sample
    before = copy.deepcopy((REQUEST, right, args))
    runner.run(verifier.verify(REQUEST, right, args))
    assert (REQUEST, right, args) == before


def test_one_verifier_judges_many_answers_at_once(sample, runner):
    verifier, args, right, wrong = sample

    async def judge_all():
        return await asyncio.gather(*(verifier.verify(REQUEST, answer, args) for answer in [right, wrong] * 20))

    statuses = [verdict.status for verdict in runner.run(judge_all())]
    assert statuses == [Status.PASSED, Status.FAILED] * 20


def test_a_verifier_serves_one_event_loop_after_another(sample):
    verifier, args, right, _ = sample
    for _ in range(3):
        assert asyncio.run(verifier.verify(REQUEST, right, args)).status is Status.PASSED


@pytest.mark.parametrize("request_", [{}, {"messages": None, "tools": None}, {"tools": [None, {"function": {}}]}])
def test_odd_requests(sample, runner, request_):
    verifier, args, right, _ = sample
    check(runner.run(verifier.verify(request_, right, args)))


@pytest.mark.parametrize("args", [{}, {"numbers": None, "target": [], "reference": 5, "want": None}])
def test_odd_arguments(sample, runner, args):
    verifier, _, right, _ = sample
    check(runner.run(verifier.verify(REQUEST, right, args)))


any_text = st.text(st.characters(exclude_categories=()), max_size=20)
pieces = st.sampled_from(
    ["answer:", "<answer>", "</answer>", "```json\n", "```", "3", "7", "1", "*", "+", "(", ")", "=", "22", " ", "\n",
     '{"n":', '"a"', "}", "[", "]", ",", "NaN", "1e400", "\\ud800", '"', "abcd", "-", "/", "0"]
)  # fmt: skip
texts = any_text | st.lists(pieces, max_size=12).map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
arguments = texts | values.map(lambda value: json.dumps({"city": value})) | values
functions = values | st.fixed_dictionaries({}, optional={"name": st.just("book") | values, "arguments": arguments})
calls = values | st.lists(values | st.fixed_dictionaries({"function": functions}), max_size=3)
answers = st.fixed_dictionaries({}, optional={"role": texts, "content": texts | values, "tool_calls": calls})


@settings(
    max_examples=80, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(answer=answers)
def test_any_answer_gets_a_verdict(sample, runner, answer):
    verifier, args, _, _ = sample
    check(runner.run(verifier.verify(REQUEST, answer, args)))


@settings(
    max_examples=40, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(parameters=values | st.fixed_dictionaries({"properties": values, "required": values}))
def test_any_tool_gets_a_verdict(runner, parameters):
    request = {"messages": [], "tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}]}
    verifier = registry.compile_verifier("function_call", {})
    check(runner.run(verifier.verify(request, calling("f", '{"city": 1}'), {})))
