"""Countdown's problems: splits, determinism, and solutions checked by means that share no code with the generator."""

import ast
import operator
import random
import re
from fractions import Fraction
from itertools import islice

import pytest

from demo.countdown import guess, make_problem, number_sets, problems, targets, work_out
from demo.splits import SPLITS

OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def compute(expression):
    def walk(node):
        if isinstance(node, ast.BinOp):
            return OPERATIONS[type(node.op)](walk(node.left), walk(node.right))
        return Fraction(node.value)

    return walk(ast.parse(expression, mode="eval").body)


def numbers_in(text):
    return sorted(int(number) for number in re.findall(r"\d+", text))


@pytest.mark.parametrize("count", [3, 4])
def test_splits_share_no_numbers_in_any_order(count):
    sets = {split: {tuple(sorted(numbers)) for numbers in number_sets(split, count)} for split in SPLITS}
    assert all(sets.values())
    assert sum(map(len, sets.values())) == len(set().union(*sets.values()))


@pytest.mark.parametrize("split", SPLITS)
def test_problems_stay_in_their_split(split):
    for problem in islice(problems(split, seed=3), 300):
        assert tuple(sorted(problem.args["numbers"])) in number_sets(split)
        asked = numbers_in(problem.messages[0]["content"])
        assert asked == sorted([*problem.args["numbers"], problem.args["target"]])


def test_the_same_seed_gives_the_same_problems_and_another_one_others():
    first, again, other = (list(islice(problems("development", seed), 50)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_nothing_repeats_before_the_split_is_used_up():
    total = sum(len(targets(numbers)) for numbers in number_sets("development"))
    assert len({problem.key for problem in islice(problems("development", 0), total)}) == total


@pytest.mark.parametrize("count", [3, 4])
def test_written_work_is_true_and_ends_in_a_solution(count):
    rng = random.Random(5)
    for problem in islice(problems("pretraining", 5, count) if count == 3 else some_of_four(), 200):
        numbers, target = tuple(sorted(problem.args["numbers"])), problem.args["target"]
        work, solution = work_out(rng, numbers, target)
        assert compute(solution) == target
        assert numbers_in(solution) == list(numbers)
        for sum_, value in re.findall(r"(\d+[-+*/]\d+)=(\d+)", work):
            assert compute(sum_) == int(value)


def some_of_four():
    rng = random.Random(4)
    for numbers in rng.sample(number_sets("pretraining", 4), 20):
        for target in targets(numbers)[:10]:
            yield make_problem(rng, numbers, target)


def test_guesses_use_each_number_once_and_know_their_value():
    rng = random.Random(6)
    for problem in islice(problems("training", 6), 200):
        numbers, target = tuple(sorted(problem.args["numbers"])), problem.args["target"]
        found = guess(rng, numbers, target, right=0.5)
        assert numbers_in(found.expression) == list(numbers)
        assert compute(found.expression) == found.value
