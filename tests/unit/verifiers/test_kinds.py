"""The smaller kinds: json_schema, regex, all_of; the registry; what a user's function may return."""

import pytest

from verifiers import registry
from verifiers.base import Cause, InvalidArgs, InvalidVerifier, Status, Verdict
from verifiers.python import make_kind, read_verdict, to_plain
from verifiers.sandbox import BadProgram, Ran, SandboxFailed


async def judge(kind, config, content, args=None):
    return await registry.compile_verifier(kind, config).verify({}, {"content": content}, args or {})


OBJECT = {"schema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}}


@pytest.mark.parametrize(
    "content", ['{"n": 1}', ' {"n": 1}\n', '```json\n{"n": 1}\n```', '```\n{"n": 1}```', '```JSON \n{"n": 1}\n``` ']
)
async def test_json_schema_passes(content):
    assert (await judge("json_schema", OBJECT, content)).status is Status.PASSED


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "the answer is empty"),
        (None, "the answer is empty"),
        ("``````", "the answer is not JSON: Expecting value at line 1 column 1"),
        ('```python\n{"n": 1}\n```', "the answer is not JSON: Expecting value at line 1 column 1"),
        ('Here: {"n": 1}', "the answer is not JSON: Expecting value at line 1 column 1"),
        ('{"n": 1, "n": 1}', "the answer is not JSON: the key 'n' stands twice in one object"),
        ('{"n": 1.5}', 'at /n: 1.5 is not of type "integer"'),
        ("{}", 'at (root): "n" is a required property'),
        ("[1]", 'at (root): [1] is not of type "object"'),
    ],
)
async def test_json_schema_fails(content, says):
    verdict = await judge("json_schema", OBJECT, content)
    assert (verdict.status, verdict.reason, verdict.safe_for_model) == (Status.FAILED, says, True)


async def test_json_schema_without_fences():
    assert (await judge("json_schema", {**OBJECT, "fenced": False}, '```json\n{"n": 1}\n```')).status is Status.FAILED


async def test_json_schema_keeps_what_it_asks_for_to_itself():
    verdict = await judge("json_schema", {"schema": {"const": "secret"}}, '"x"')
    assert (verdict.status, verdict.safe_for_model) == (Status.FAILED, False)


async def test_json_schema_abstains_from_what_would_take_too_long():
    schema = {"pattern": "^(?:(a+)\\1?)+$"}
    assert (await judge("json_schema", {"schema": schema}, f'"{"a" * 400}c"')).cause is Cause.TOO_COSTLY


@pytest.mark.parametrize(
    ("config", "content", "status"),
    [
        ({"pattern": "b+"}, "abbc", Status.PASSED),
        ({"pattern": "b+", "mode": "fullmatch"}, "abbc", Status.FAILED),
        ({"pattern": "ab+c", "mode": "fullmatch"}, "abbc", Status.PASSED),
        ({"pattern": "b+", "negate": True}, "abbc", Status.FAILED),
        ({"pattern": "x", "negate": True}, "abbc", Status.PASSED),
        ({"pattern": "(?i)B"}, "abbc", Status.PASSED),
        ({"pattern": "^é.$"}, "éß", Status.PASSED),
        ({"pattern": "\\?"}, "\ud800", Status.FAILED),
        ({"pattern": ""}, None, Status.PASSED),
        ({"pattern": "(a+)+$"}, "a" * 20_000 + "b", Status.FAILED),
        ({"pattern": "(.{1,200}){1,4}z"}, "a" * 500_000, Status.ABSTAINED),
    ],
)
async def test_regex(config, content, status):
    assert (await judge("regex", config, content)).status is status


async def test_regex_keeps_its_pattern_to_itself():
    assert not (await judge("regex", {"pattern": "secret"}, "x")).safe_for_model


@pytest.mark.parametrize(
    ("pattern", "where"),
    [
        ("a(b", "/pattern column 1"),
        ("ab**", "/pattern column 3"),
        ("a[z-a]", "/pattern column 3"),
        ("(?=a)", "/pattern column 1"),
        ("(a)\\1", "/pattern column 4"),
        ("a\\", "/pattern column 2"),
        ("a{1001}", "/pattern column 2"),
        ("a\ud800", "/pattern column 2"),
    ],
)
def test_regex_says_where_a_pattern_is_bad(pattern, where, capfd):
    with pytest.raises(InvalidVerifier) as caught:
        registry.compile_verifier("regex", {"pattern": pattern})
    assert caught.value.where == where
    assert capfd.readouterr().err == ""  # RE2 would log it by itself


PAIR = {
    "verifiers": [{"kind": "regex", "config": {"pattern": "answer"}}, {"kind": "countdown", "config": {"target": 3}}]
}


@pytest.mark.parametrize(
    ("content", "status", "reason", "safe"),
    [
        ("answer: 1+2", Status.PASSED, "", False),
        ("1+2", Status.FAILED, "regex: the pattern does not match", False),
        ("answer: 1", Status.FAILED, "countdown: does not use 2", True),
        ("1", Status.FAILED, "regex: the pattern does not match; countdown: does not use 2", False),
    ],
)
async def test_all_of(content, status, reason, safe):
    verdict = await judge("all_of", PAIR, content, {"numbers": [1, 2]})
    assert (verdict.status, verdict.reason, verdict.safe_for_model) == (status, reason, safe)
    assert verdict.score == (status is Status.PASSED)


async def test_all_of_a_failure_outweighs_an_abstention():
    verdict = await judge("all_of", PAIR, "1+2")  # countdown has no numbers
    assert (verdict.status, verdict.reason) == (Status.FAILED, "regex: the pattern does not match")
    verdict = await judge("all_of", PAIR, "answer: 1+2")
    assert verdict.status is Status.ABSTAINED
    assert verdict.reason.startswith("countdown: ")


TWICE = {
    "verifiers": [
        {"kind": "countdown", "name": "small", "config": {"numbers": [1, 2]}},
        {"kind": "countdown", "name": "big"},
    ]
}


@pytest.mark.parametrize(
    "args",
    [
        {"target": 3, "big": {"numbers": [1, 2]}},
        {"small": {"target": 3}, "big": {"target": 3, "numbers": [1, 2]}},
        {"countdown": {"target": 3, "numbers": [1, 2]}},
        {"target": 4, "countdown": {"target": 3, "numbers": [1, 2]}},
    ],
)
async def test_all_of_hands_arguments_to_its_members(args):
    registry.check_args("all_of", TWICE, args)
    assert (await judge("all_of", TWICE, "1+2", args)).status is Status.PASSED


@pytest.mark.parametrize(
    ("args", "where"),
    [
        ({}, "/small/target"),
        ({"target": 3}, "/big/numbers"),
        ({"target": 3, "big": 5}, "/big"),
        ({"target": 3, "big": {"numbers": ["1"]}}, "/big/numbers/0"),
        ({"target": 3, "big": {"numbers": [1], "x": 1}}, "/big"),
        ({"target": 3, "numbers": [1], "goal": 1}, "/goal"),
    ],
)
def test_all_of_checks_the_arguments_of_its_members(args, where):
    with pytest.raises(InvalidArgs) as caught:
        registry.check_args("all_of", TWICE, args)
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"verifiers": []}, "/verifiers"),
        ({"verifiers": [{"kind": "regex", "config": {"pattern": "a("}}]}, "/verifiers/0/config/pattern column 1"),
        ({"verifiers": [{"kind": "countdown"}, {"kind": "regex"}]}, "/verifiers/1/config"),
        ({"verifiers": [{"kind": "countdown"}, {"kind": "countdown"}]}, "/verifiers/1/name"),
        ({"verifiers": [{"kind": "vibes"}]}, "/verifiers/0/kind"),
        (
            {"verifiers": [{"kind": "json_schema", "config": {"schema": {"type": 1}}}]},
            "/verifiers/0/config/schema/type",
        ),
    ],
)
def test_all_of_says_where_a_member_is_bad(config, where):
    with pytest.raises(InvalidVerifier) as caught:
        registry.compile_verifier("all_of", config)
    assert caught.value.where == where


def test_the_registry_lists_its_kinds():
    assert {"countdown", "function_call", "json_schema", "regex", "python", "all_of"} <= set(registry.kinds())
    assert all(name == kind.name and kind.summary for name, kind in registry.kinds().items())


def test_unknown_kinds_are_refused():
    with pytest.raises(InvalidVerifier, match="choose one of countdown"):
        registry.compile_verifier("vibes", {})
    with pytest.raises(InvalidArgs, match="vibes"):
        registry.check_args("vibes", {}, {})


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("countdown", {"number": [1]}),
        ("function_call", {"strict": "yes"}),
        ("json_schema", {}),
        ("json_schema", {"schema": {}, "strict": True}),
        ("regex", {"pattern": 5}),
        ("regex", {"pattern": "a", "mode": "match"}),
        ("python", {"code": ""}),
        ("python", {"code": "def verify(): pass", "timeout_s": 1000}),
        ("countdown", {"numbers": ["\ud800"]}),
        ("countdown", {"numbers": {1}}),
    ],
)
def test_configurations_are_checked(kind, config):
    with pytest.raises(InvalidVerifier) as caught:
        registry.compile_verifier(kind, config)
    assert str(caught.value).startswith(kind)


@pytest.mark.parametrize("kind", ["json_schema", "regex"])
def test_kinds_without_arguments_refuse_any(kind):
    registry.check_args(kind, {}, {})
    with pytest.raises(InvalidArgs):
        registry.check_args(kind, {}, {"x": 1})


@pytest.mark.parametrize(
    ("kind", "config", "says"),
    [
        ("regex", {"patern": "4"}, "regex: 'patern' is not known, only pattern, mode, negate"),
        ("regex", {}, 'regex: "pattern" is a required property'),
        ("regex", {"pattern": 5}, 'regex: 5 is not of type "string" (at /pattern)'),
    ],
)
def test_a_refusal_says_what_is_known_and_points_at_a_place_where_there_is_one(kind, config, says):
    with pytest.raises(InvalidVerifier) as refused:
        registry.compile_verifier(kind, config)
    assert str(refused.value) == says


def test_args_that_no_kind_takes_are_named():
    with pytest.raises(InvalidArgs) as refused:
        registry.check_args("regex", {"pattern": "4"}, {"total": 5})
    assert (str(refused.value), refused.value.where) == ("regex: 'total' is not known, for it takes none", "(root)")


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (True, Verdict.passed()),
        (False, Verdict.failed("")),
        ({"passed": True}, Verdict.passed()),
        ({"passed": True, "score": 0.5, "reason": "so\0so"}, Verdict.passed("so\ufffdso", 0.5)),
        ({"passed": False, "score": 1, "safe_for_model": True}, Verdict.failed("", 1.0, safe_for_model=True)),
        ({"passed": False, "reason": "x" * 5000}, Verdict.failed("x" * 2000)),
    ],
)
def test_a_function_may_return(value, verdict):
    assert read_verdict(value, "") == verdict


@pytest.mark.parametrize(
    "value",
    [
        None, 1, 1.0, "True", [True], (True,), {}, {"passed": 1}, {"passed": None}, {"passed": True, "score": "1"},
        {"passed": True, "score": 1.01}, {"passed": True, "score": -1}, {"passed": True, "score": float("nan")},
        {"passed": True, "score": True}, {"passed": True, "reason": 5}, {"passed": True, "safe_for_model": "yes"},
        {"passed": True, "extra": 1}, {"passed": True, 5: 1}, b"x", 1j,
    ],
)  # fmt: skip
def test_a_function_may_not_return(value):
    verdict = read_verdict(value, "out")
    assert (verdict.status, verdict.stdout) == (Status.ABSTAINED, "out")
    assert verdict.reason.startswith("verify has to return")


@pytest.mark.parametrize(("value", "says"), [({"ok": True}, "`passed` is missing"), ({"passed": 1}, "is no bool")])
def test_a_verdict_without_passed_is_told_so(value, says):
    assert says in read_verdict(value, "").reason


def test_plain_values_are_copied_clean():
    assert to_plain({"a": ("x\ud800", [1, None, True])}) == {"a": ["x\ufffd\ufffd\ufffd", [1, None, True]]}
    with pytest.raises(TypeError, match="bytes"):
        to_plain([b"x"])
    loop: list = []
    loop.append(loop)
    with pytest.raises(TypeError, match="deeper"):
        to_plain(loop)


class FakeSandbox:
    """Answers as it is told."""

    def __init__(self, result):
        self.result = result
        self.inputs = None

    def check(self, code, function):
        if isinstance(self.result, BadProgram):
            raise self.result

    async def run(self, code, call, inputs, timeout_s):
        self.inputs = inputs
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


async def test_python_hands_the_function_what_it_needs():
    sandbox = FakeSandbox(Ran({"passed": True, "score": 0.5}, "hello"))
    verifier = make_kind(sandbox).compile_checked({"code": "..."})
    verdict = await verifier.verify({"messages": [], "tools": []}, {"content": "x\ud800"}, {"k": 1})
    assert verdict == Verdict.passed("", 0.5, stdout="hello")
    assert sandbox.inputs == {
        "__request": {"messages": [], "tools": []},
        "__answer": {"content": "x\ufffd\ufffd\ufffd"},
        "__args": {"k": 1},
    }


async def test_python_abstains_where_the_sandbox_fails():
    verifier = make_kind(FakeSandbox(SandboxFailed("boom", "said", Cause.BUSY))).compile_checked({"code": "..."})
    assert await verifier.verify({}, {}, {}) == Verdict.abstained("boom", Cause.BUSY, stdout="said")
    assert (await verifier.verify({}, {"content": b"x"}, {})).cause is Cause.BAD_ARGS


@pytest.mark.parametrize(("place", "where"), [(None, "/code"), ("line 2 column 3", "/code line 2 column 3")])
def test_python_says_where_code_is_bad(place, where):
    with pytest.raises(InvalidVerifier) as caught:
        make_kind(FakeSandbox(BadProgram("no", place))).compile_checked({"code": "..."})
    assert caught.value.where == where
