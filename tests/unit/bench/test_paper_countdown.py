"""Countdown as the paper's set-up draws it: what can be solved, by an independent search, and what a file may hold."""

import itertools
import json
import operator
import random
from fractions import Fraction
from pathlib import Path

import pytest

from bench.paper.countdown import COUNTS, LARGEST_NUMBER, LARGEST_TARGET, can_make, draw, make_problem, read_file
from bench.paper.problems import BadInput
from bench.paper.split import Data, split_problems
from demo.problem import Problem
from verifiers.countdown import find_flaw


def reach(values: tuple[Fraction, ...], target: int) -> bool:
    """Try every order and every operator, forwards."""
    if len(values) == 1:
        return values[0] == target
    for i, j in itertools.permutations(range(len(values)), 2):
        rest = tuple(value for place, value in enumerate(values) if place not in (i, j))
        for apply in (operator.add, operator.sub, operator.mul, operator.truediv):
            if apply is operator.truediv and not values[j]:
                continue
            if reach((apply(values[i], values[j]), *rest), target):
                return True
    return False


def test_what_can_be_solved_is_what_trying_everything_solves():
    rng, seen = random.Random(3), set()
    for _ in range(40):
        numbers, target = [rng.randint(0, 9) for _ in range(rng.choice((1, 2, 3)))], rng.randint(0, 40)
        expected = reach(tuple(map(Fraction, numbers)), target)
        assert can_make(numbers, target) is expected, (numbers, target)
        seen.add(expected)
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("numbers", "target", "solvable"),
    [
        ([44, 19, 35], 98, True),
        ([3, 3, 8, 8], 24, True),  # 8 / (3 - 8 / 3): by a fraction alone
        ([1, 1, 1, 1], 24, False),
        ([5, 7, 0], 0, True),
        ([0, 5], 0, True),
        ([6, 0], 1, False),
    ],
)
def test_known_problems(numbers: list[int], target: int, solvable: bool):
    assert can_make(numbers, target) is solvable


def test_drawn_problems_are_different_and_within_range_and_the_same_for_the_same_name():
    drawn = draw(3, "a")
    assert draw(3, "a") == drawn
    assert draw(3, "b") != drawn
    assert len({problem.key for problem in drawn}) == 3
    for problem in drawn:
        numbers, target = problem.args["numbers"], problem.args["target"]
        assert len(numbers) in COUNTS
        assert all(1 <= number <= LARGEST_NUMBER for number in numbers)
        assert 1 <= target <= LARGEST_TARGET
        assert str(numbers) in problem.messages[0]["content"]
        assert f"equals {target}." in problem.messages[0]["content"]


def test_training_problems_are_none_of_the_measured_ones_whatever_the_seed():
    for seed in (0, 1):
        measured, training = split_problems("countdown", Data(), 2, 2, seed)
        assert measured == split_problems("countdown", Data(), 2, 1, 7)[0]
        assert not {problem.key for problem in measured} & {problem.key for problem in training}


def test_the_form_that_the_question_asks_for_is_one_that_the_verifier_reads():
    problem = make_problem([1, 2, 3], 1)
    assert "<answer>(1 + 2) / 3</answer>" in problem.messages[0]["content"]
    assert not find_flaw("<think>1+2=3</think> <answer>(1 + 2) / 3</answer>", [1, 2, 3], 1)


def test_questions_of_ones_own_hold_the_problem():
    asked = make_problem([3, 5, 2], 21, "Using the numbers {listed}, make {target}.")
    assert asked.messages[0]["content"] == "Using the numbers 3, 5 and 2, make 21."
    for prompt in ("Make {target}.", "Use {numbers}.", "{numbers} {target} {other}", "{numbers} {target} {"):
        with pytest.raises(BadInput, match="--countdown-prompt"):
            make_problem([3, 5, 2], 21, prompt)


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


def test_a_file_gives_each_problem_once(tmp_path: Path):
    rows = [{"target": 98, "nums": [44, 19, 35]}, {"target": 98, "nums": [35, 44, 19]}, {"target": 3, "nums": [1, 2]}]
    found = read_file(write(tmp_path / "c.jsonl", *map(json.dumps, rows), ""))
    assert [problem.args for problem in found] == [
        {"numbers": [44, 19, 35], "target": 98},
        {"numbers": [1, 2], "target": 3},
    ]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "no JSON"),
        ("[1, 2]", "is expected"),
        ('{"target": 3}', "is expected"),
        ('{"target": 3, "nums": []}', "is expected"),
        ('{"target": 3, "nums": [1, true]}', "is expected"),
        ('{"target": "3", "nums": [1, 2]}', "is expected"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: str, said: str):
    path = write(tmp_path / "c.jsonl", '{"target": 3, "nums": [1, 2]}', "", bad)
    with pytest.raises(BadInput, match=rf"c\.jsonl, line 3: .*{said}"):
        read_file(path)


def test_too_few_problems_are_told(tmp_path: Path):
    path = write(tmp_path / "c.jsonl", '{"target": 3, "nums": [1, 2]}')
    problems: list[Problem] = read_file(path)
    with pytest.raises(BadInput, match="--countdown: the file has 1 usable problems, and 1 are to be measured"):
        split_problems("countdown", Data(countdown_file=problems), 1, 1, 0)
