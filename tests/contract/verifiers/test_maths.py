"""The kind `math`: what is equal, what is not, and that no answer hangs or breaks it."""

import asyncio
import time

import psutil
import pytest

from verifiers.base import Cause, InvalidArgs, InvalidVerifier, Status
from verifiers.isolation import Isolation
from verifiers.maths import MAX_TEXT_CHARS, make_kind


@pytest.fixture(scope="module")
def kind():
    isolation = Isolation("verifiers.maths_job:judge", workers=1)
    yield make_kind(isolation)
    isolation.close()


async def judge(kind, reference, text, **config):
    verifier = kind.compile_checked({"timeout_s": 10, **config})
    return await verifier.verify({}, {"content": text}, {"reference": reference})


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("42", "6*7 is 42, so \\boxed{42}."),
        ("42", "**Answer:** $42$"),
        ("$\\frac{1}{2}$", "0.5"),
        ("1/2", "\\boxed{\\frac{2}{4}}"),
        ("1/3", "0.333333"),
        ("50%", "0.5"),
        ("2516_8", "\\boxed{2516_{8}}"),
        ("\\sqrt{12}", "2*sqrt(3)"),
        ("(x+1)^2", "x^2 + 2x + 1"),
        ("(x+1)**2", "1 + 2*x + x**2"),
        ("\\sin(x)^2", "1 - cos(x)^2"),
        ("x = 5", "5"),
        ("5", "x = 5"),
        ("\\{1, 2\\}", "{2, 1}"),
        ("1000", "1,000"),
        ("x < 5", "5 > x"),
        ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\boxed{\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}}"),
        ("2e3", "2000"),
    ],
)
async def test_equal_answers_pass(kind, reference, text):
    verdict = await judge(kind, reference, text)
    assert (verdict.status, verdict.score) == (Status.PASSED, 1.0)


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("42", "41 or 42"),
        ("42", "\\boxed{41} or \\boxed{42}"),
        ("42", "41, 42"),
        ("42", "40 2"),
        ("42", "43 = 42"),
        ("42", "41 = 42"),
        ("42", "4 2"),
        ("42", "it may be 42"),
        ("42", ""),
        ("42", None),
        ("42", "\\boxed{\\frac{42}}"),
        ("42", "42 +"),
        ("50", "50%"),
        ("(1, 2)", "(2, 1)"),
        ("(1, 2)", "[1, 2]"),
        ("1/3", "0.333"),
        ("x", "y"),
        ("3", "3\\text{ km}"),
        ("2516_8", "2516_9"),
        ("101", "101_2"),
    ],
)
async def test_other_answers_fail_with_a_reason(kind, reference, text):
    verdict = await judge(kind, reference, text)
    assert (verdict.status, verdict.score, verdict.safe_for_model) == (Status.FAILED, 0.0, True)
    assert verdict.reason


async def test_the_rules_can_be_set(kind):
    assert (await judge(kind, "1/3", "0.33", digits=2)).status is Status.PASSED
    assert (await judge(kind, "3\\text{ m}", "3", ignore_units=True)).status is Status.PASSED


async def test_the_request_s_reference_comes_before_the_configured_one(kind):
    verifier = kind.compile_checked({"reference": "1"})
    assert (await verifier.verify({}, {"content": "1"}, {})).status is Status.PASSED
    assert (await verifier.verify({}, {"content": "1"}, {"reference": "2"})).status is Status.FAILED


@pytest.mark.parametrize("reference", ["+", "1 or 2", "sqrt(2", "the answer", "\\frac{1}"])
async def test_references_that_cannot_be_read_are_refused(kind, reference):
    with pytest.raises(InvalidVerifier) as caught:
        kind.compile_checked({"reference": reference})
    assert caught.value.where == "/reference"


async def test_args_are_checked(kind):
    for config, args in (({}, {}), ({}, {"reference": "1 or 2"}), ({"reference": "1"}, {"reference": " "})):
        with pytest.raises(InvalidArgs):
            kind.check_args(config, args)
    kind.check_args({"reference": "1"}, {})
    verdict = await judge(kind, "\\frac{1}", "1")  # only computer algebra can tell
    assert verdict.cause is Cause.BAD_ARGS
    assert (await kind.compile_checked({}).verify({}, {"content": "1"}, {})).cause is Cause.BAD_ARGS


ENDLESS = {
    "power tower": "9^{9^{9^{9^9}}}",
    "factorial of a factorial": "(20!)!",
    "huge power": "2^{10000000000}",
    "expansion": "(x+1)^{30000}",
    "powers of powers": "((10^{10})^{10})^{10^{10}}",
}


@pytest.mark.hostile
@pytest.mark.parametrize("name", ENDLESS)
async def test_what_takes_for_ever_is_killed(kind, name):
    verdict = await judge(kind, "2", ENDLESS[name], timeout_s=0.5)
    assert verdict.status is not Status.PASSED
    assert verdict.cause in (Cause.TOO_COSTLY, Cause.CRASHED, Cause.UNDECIDED, None)
    if name == "power tower":
        assert verdict.cause is Cause.TOO_COSTLY
    assert (await judge(kind, "2", "2")).status is Status.PASSED


HOSTILE = {
    "roots in roots": "\\sqrt{" * 39 + "2" + "}" * 39,
    "fractions in fractions": "\\frac{1}{" * 39 + "2" + "}" * 39,
    "boxes in boxes": "\\boxed{" * 5000 + "}" * 5000,
    "brackets": "(" * 10_000,
    "digits": "9" * 10_000,
    "sum": "\\sum_{n=1}^{10^9} n",
    "integral": "\\int_0^1 e^{e^{x^x}} dx",
    "product": "\\prod_{n=1}^{100000} n",
    "import": "__import__('os').system('id')",
    "lambda": "(lambda: 0).__class__",
    "evaluated text": "\\operatorname{__import__('os').getpid()}",
    "NUL": "\0",
    "surrogate": "\ud800",
    "right to left": "\u202e42",
    "arabic digits": "\u0664\u0662",
    "command that is none": "\\undefined{42}",
    "input of a file": "\\input{/etc/passwd}",
    "definition of itself": "\\def\\x{\\x}\\x",
    "division by zero": "1/0",
    "infinity": "oo - oo",
    "dollars": "$" * 10_000,
    "backslashes": "\\" * 1999,
}


@pytest.mark.hostile
@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_answers_end_as_a_verdict(kind, name):
    verdict = await judge(kind, "42", HOSTILE[name], timeout_s=5)
    assert verdict.status in (Status.FAILED, Status.ABSTAINED)
    assert verdict.reason
    assert len(verdict.reason) < 1000
    assert (await judge(kind, "2", "2")).status is Status.PASSED


async def test_long_answers_are_not_begun(kind):
    assert (await judge(kind, "1", "1" * (MAX_TEXT_CHARS + 1))).cause is Cause.TOO_COSTLY


async def test_the_loop_runs_on_meanwhile(kind):
    stalls = []

    async def tick():
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            stalls.append(time.perf_counter() - before - 0.005)

    ticking = asyncio.create_task(tick())
    await judge(kind, "2", ENDLESS["power tower"], timeout_s=0.5)
    await asyncio.gather(*(judge(kind, "42", "x " * (MAX_TEXT_CHARS // 2)) for _ in range(5)))
    ticking.cancel()
    print(f"longest stall of the loop: {max(stalls) * 1000:.1f} ms")
    assert len(stalls) > 10
    assert max(stalls) < 0.25


async def test_nothing_is_left_running():
    isolation = Isolation("verifiers.maths_job:judge", workers=2)
    kind = make_kind(isolation)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    await asyncio.gather(*(judge(kind, "2", text, timeout_s=0.5) for text in (ENDLESS["power tower"], "2", "3")))
    isolation.close()
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
