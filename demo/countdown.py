"""Countdown: combine the given numbers, each once, so that they make the target.

Owns the problems, the search for a solution as a person would write it down, and plausible wrong guesses. Only whole
numbers from 0 to 144 occur on the way, so that a tiny model can learn the arithmetic.
"""

import random
from collections.abc import Iterator
from functools import cache
from itertools import combinations_with_replacement
from typing import NamedTuple

from demo.problem import Problem
from demo.splits import Split, split_of

OPERATORS = "+-*/"
LARGEST_VALUE = 144
TARGETS = range(1, 100)
LARGEST_NUMBER = {3: 12, 4: 10}

QUESTIONS = (
    "Using the numbers {numbers}, make {target}.",
    "Use the numbers {numbers} to make {target}.",
    "Combine {numbers} to reach {target}. Use each number once.",
    "Make {target} from {numbers}.",
)


class Candidate(NamedTuple):
    """One way of combining numbers; `top` is its outermost operator."""

    expression: str
    value: int
    top: str


class BackStep(NamedTuple):
    """A last operation that uses one number: the others would have to make `needed`."""

    text: str
    needed: int
    operator: str
    needed_on_left: bool


def combine(left: int, operator: str, right: int) -> int | None:
    """Compute one operation, or return None where the result is not a whole number from 0 to 144."""
    if operator == "/":
        return left // right if right and left % right == 0 else None
    value = {"+": left + right, "-": left - right, "*": left * right}[operator]
    return value if 0 <= value <= LARGEST_VALUE else None


def _join(inner: Candidate, operator: str, number: int, inner_on_left: bool) -> str:
    if not inner_on_left:
        return f"{number}{operator}({inner.expression})"
    if operator in "*/" and inner.top in "+-":
        return f"({inner.expression}){operator}{number}"
    return f"{inner.expression}{operator}{number}"


def combine_pair(first: int, second: int) -> list[Candidate]:
    """List every operation on two numbers, sums and products with the larger number first."""
    large, small = max(first, second), min(first, second)
    found = []
    for left, right in dict.fromkeys([(large, small), (small, large)]):
        for operator in OPERATORS if left == large else "-/":
            value = combine(left, operator, right)
            if value is not None:
                found.append(Candidate(f"{left}{operator}{right}", value, operator))
    return found


@cache
def candidates(numbers: tuple[int, ...]) -> tuple[Candidate, ...]:
    """List every expression over the sorted numbers that adds one number at a time to a first pair."""
    if len(numbers) == 2:
        return tuple(combine_pair(*numbers))
    found: dict[str, Candidate] = {}
    for number in dict.fromkeys(numbers):
        for inner in candidates(_without(numbers, number)):
            for operator in OPERATORS:
                for inner_on_left in (True, False) if operator in "-/" else (True,):
                    left, right = (inner.value, number) if inner_on_left else (number, inner.value)
                    value = combine(left, operator, right)
                    if value is not None:
                        expression = _join(inner, operator, number, inner_on_left)
                        found[expression] = Candidate(expression, value, operator)
    return tuple(found.values())


@cache
def solutions(numbers: tuple[int, ...], target: int) -> tuple[Candidate, ...]:
    """List the candidates over the sorted numbers that make the target."""
    return tuple(candidate for candidate in candidates(numbers) if candidate.value == target)


def _without(numbers: tuple[int, ...], number: int) -> tuple[int, ...]:
    index = numbers.index(number)
    return numbers[:index] + numbers[index + 1 :]


@cache
def number_sets(split: Split, count: int = 3) -> tuple[tuple[int, ...], ...]:
    """List the sorted sets of numbers that belong to a split."""
    every = combinations_with_replacement(range(1, LARGEST_NUMBER[count] + 1), count)
    return tuple(numbers for numbers in every if split_of(f"countdown {numbers}") == split)


@cache
def targets(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """List the targets that the sorted numbers can make and that can be worked out."""
    made = sorted({candidate.value for candidate in candidates(numbers)} & set(TARGETS))
    return tuple(target for target in made if len(numbers) == 3 or openings(numbers, target))


def steps_back(target: int, number: int) -> list[BackStep]:
    """List the last operations that could use `number` to make the target, in the order a person would try them."""
    steps = []
    if target >= number:
        steps.append(BackStep(f"{target}-{number}={target - number}", target - number, "+", True))
    if target % number == 0:
        steps.append(BackStep(f"{target}/{number}={target // number}", target // number, "*", True))
    if target + number <= LARGEST_VALUE:
        steps.append(BackStep(f"{target}+{number}={target + number}", target + number, "-", True))
    if number >= target:
        steps.append(BackStep(f"{number}-{target}={number - target}", number - target, "-", False))
    if target * number <= LARGEST_VALUE:
        steps.append(BackStep(f"{target}*{number}={target * number}", target * number, "/", True))
    if number % target == 0:
        steps.append(BackStep(f"{number}/{target}={number // target}", number // target, "/", False))
    return steps


@cache
def openings(numbers: tuple[int, ...], target: int) -> tuple[tuple[int, BackStep], ...]:
    """List the last operations on four sorted numbers that leave a puzzle of three which can be solved."""
    return tuple(
        (number, step)
        for number in dict.fromkeys(numbers)
        for step in steps_back(target, number)
        if step.needed and solutions(_without(numbers, number), step.needed)
    )


def search_backwards(rng: random.Random, numbers: tuple[int, ...], target: int) -> tuple[list[str], Candidate]:
    """Search three numbers from the target backwards; return the lines tried and the solution that ends them.

    For each number: what the other two can make, then which value they would have to make. Looking a value up in a
    list is something a tiny model can do. Raises ValueError if there is no solution.
    """
    lines: list[str] = []
    for number in dict.fromkeys(rng.sample(numbers, len(numbers))):
        first, second = _without(numbers, number)
        pair = combine_pair(first, second)
        made = dict.fromkeys(str(way.value) for way in pair)
        lines.append(f"{max(first, second)},{min(first, second)} make {','.join(made)}")
        for step in steps_back(target, number):
            ways = [way for way in pair if way.value == step.needed and (step.needed or step.operator != "/")]
            if ways:
                way = rng.choice(ways)
                lines.append(f"{step.text}, {way.expression}={step.needed} yes")
                expression = _join(way, step.operator, number, step.needed_on_left)
                return lines, Candidate(expression, target, step.operator)
            lines.append(f"{step.text} no")
    raise ValueError(f"{numbers} cannot make {target}")


def work_out(rng: random.Random, numbers: tuple[int, ...], target: int) -> tuple[str, str]:
    """Return the written work that leads to a solution, and the solution."""
    if len(numbers) == 3:
        lines, found = search_backwards(rng, numbers, target)
        return f"work: {'; '.join(lines)}; so {found.expression}", found.expression
    number, step = rng.choice(openings(numbers, target))
    rest = _without(numbers, number)
    lines, inner = search_backwards(rng, rest, step.needed)
    opening = f"{step.text} from {', '.join(map(str, rest))}"
    solution = _join(inner, step.operator, number, step.needed_on_left)
    return f"work: {'; '.join([opening, *lines])}; so {solution}", solution


def guess(
    rng: random.Random, numbers: tuple[int, ...], target: int, right: float, avoid: str | None = None
) -> Candidate:
    """Guess without working it out: right with the given probability, else the nearest of three wrong ones."""
    rights = [found for found in solutions(numbers, target) if found.expression != avoid]
    if rights and rng.random() < right:
        return rng.choice(rights)
    every = candidates(numbers)
    drawn = [found for found in rng.sample(every, 6) if found.value != target and found.expression != avoid][:3]
    return min(drawn, key=lambda found: abs(found.value - target)) if drawn else rng.choice(every)


def make_problem(rng: random.Random, numbers: tuple[int, ...], target: int) -> Problem:
    """Word one problem: the numbers in random order, the question in one of a few ways."""
    shuffled = rng.sample(numbers, len(numbers))
    listed = f"{', '.join(map(str, shuffled[:-1]))} and {shuffled[-1]}"
    question = rng.choice(QUESTIONS).format(numbers=listed, target=target)
    return Problem(
        task="countdown",
        messages=[{"role": "user", "content": question}],
        verifier="countdown",
        args={"numbers": shuffled, "target": target},
        key=f"countdown {sorted(numbers)} {target}",
    )


def problems(split: Split, seed: int, count: int = 3) -> Iterator[Problem]:
    """Yield problems of `count` numbers for ever; none repeats until all of the split were seen."""
    rng = random.Random(f"countdown {split} {seed} {count}")
    every = [(numbers, target) for numbers in number_sets(split, count) for target in targets(numbers)]
    while True:
        for numbers, target in rng.sample(every, len(every)):
            yield make_problem(rng, numbers, target)
