"""The countdown kind: what it takes for the answer, and the rules."""

import pytest

from verifiers.base import Cause, InvalidArgs, Status
from verifiers.countdown import KIND, find_answer, find_flaw

NUMBERS = [3, 7, 1]


@pytest.mark.parametrize(
    "text",
    [
        "3*7+1",
        " 3 * 7\t+ 1 \n",
        "1+7*3",
        "(3*7)+1",
        "3*7+1 = 22",
        "answer: 3*7+1",
        "work: 22-1=21 no; 21/7=3 yes answer: 3*7+1",
        "ANSWER: 3*7+1=22",
        "Answer:\n\n  3*7+1\nThat was easy.",
        "**Answer:** `3*7+1`.",
        "answer: $3*7+1$",
        "answer: 7+3 no, answer: 3*7+1",
        "<answer>3*7+1</answer>",
        "<think>answer: 9</think><answer>1</answer> no: <Answer>\n3*7+1 = 22\n</ANSWER> I hope so. answer: 5",
        "<answer><answer>3*7+1</answer>",
    ],
)
def test_accepts(text):
    assert find_flaw(text, NUMBERS, 22) == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "there is no answer"),
        ("I cannot do it", "there is no answer: 'I' at position 1 is no digit, operator or bracket"),
        ("answer:", "the answer is empty"),
        ("answer:\n \n", "the answer is empty"),
        ("<answer></answer>", "the answer is empty"),
        ("<answer>3*7+1", "there is no answer: '<' at position 1 is no digit, operator or bracket"),
        ("answer: 3*7+3", "uses 3 twice, not once"),
        ("answer: 3*7+1+1+1", "uses 1 3 times, not once"),
        ("answer: 3*7+2-1", "uses 2, which is not one of the numbers"),
        ("answer: 21+1", "uses 21, which is not one of the numbers"),
        ("answer: 3*7", "does not use 1"),
        ("answer: 22", "uses 22, which is not one of the numbers"),
        ("answer: 3*7-1", "evaluates to 20, not 22"),
        ("answer: 7/3+1", "evaluates to 10/3, not 22"),
        ("answer: 3*7+1 = 23", "says that it makes '23', not 22"),
        ("answer: 3*7+1 = 22 = 22", "says that it makes '22 = 22', not 22"),
        ("answer: 3*7+1 = ", "says that it makes '', not 22"),
        ("answer: 3*7+1 = ٢٢", "says that it makes '\\u0662\\u0662', not 22"),
        ("answer: 22 = 3*7+1", "uses 22, which is not one of the numbers"),
        ("answer: 3\xd77+1", "'\\xd7' at position 2 is no digit, operator or bracket"),
        ("answer: 3*7+1, I think", "',' at position 6 is no digit, operator or bracket"),
        ("answer: 3*7+1 or 7*3+1", "'o' at position 7 is no digit, operator or bracket"),
    ],
)
def test_refuses(text, says):
    assert find_flaw(text, NUMBERS, 22) == says


def test_counts_numbers_that_are_given_twice():
    assert find_flaw("3+3", [3, 3], 6) == ""
    assert find_flaw("3", [3, 3], 3) == "uses 3 once, not twice"
    assert find_flaw("3+3+3", [3, 3], 9) == "uses 3 3 times, not twice"


def test_a_negative_target_may_be_claimed():
    assert find_flaw("3-7 = -4", [3, 7], -4) == ""


def test_the_mark_is_found_in_ascii_alone():
    assert find_answer("an\u017fwer: 5") is None  # a long s, which folds to s
    assert find_answer("no mark") is None


@pytest.mark.parametrize("size", [1_000_000])
@pytest.mark.parametrize("part", ["answer:", ":", "<answer>", "</answer>", "(", "9", "é", "\n"])
def test_long_texts_are_refused(part, size):
    assert find_flaw(part * (size // len(part)), NUMBERS, 22)


async def test_arguments_override_the_configuration():
    verifier = KIND.compile_checked({"numbers": [1, 2], "target": 3})
    assert (await verifier.verify({}, {"content": "1+2"}, {})).status is Status.PASSED
    assert (await verifier.verify({}, {"content": "1+2"}, {"target": 4})).reason == "evaluates to 3, not 4"


async def test_reasons_are_safe_for_the_model():
    verdict = await KIND.compile_checked({}).verify({}, {"content": "1"}, {"numbers": [2], "target": 2})
    assert verdict.status is Status.FAILED
    assert verdict.safe_for_model


@pytest.mark.parametrize("args", [{}, {"numbers": [1]}, {"numbers": "1", "target": 1}, {"numbers": [[1]], "target": 1}])
async def test_without_a_problem_it_abstains(args):
    verdict = await KIND.compile_checked({}).verify({}, {"content": "1"}, args)
    assert (verdict.status, verdict.cause) == (Status.ABSTAINED, Cause.BAD_ARGS)


@pytest.mark.parametrize(
    ("config", "args", "where"),
    [
        ({}, {"numbers": [1, 2]}, "/target"),
        ({}, {"target": 2}, "/numbers"),
        ({}, {"numbers": [1, -2], "target": 2}, "/numbers/1"),
        ({}, {"numbers": [], "target": 2}, "/numbers"),
        ({}, {"numbers": [1, True], "target": 2}, "/numbers/1"),
        ({"target": 2}, {"numbers": [1], "goal": 2}, "(root)"),
    ],
)
def test_arguments_are_checked(config, args, where):
    with pytest.raises(InvalidArgs) as caught:
        KIND.check_args(config, args)
    assert caught.value.where == where


def test_configuration_and_arguments_complete_each_other():
    KIND.check_args({"target": 2}, {"numbers": [1, 1]})
