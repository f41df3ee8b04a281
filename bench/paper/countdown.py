"""Countdown as TinyZero draws it: numbers and a target at random, each number to be used exactly once.

Source: https://github.com/Jiayi-Pan/TinyZero, examples/data_preprocess/countdown.py (`gen_dataset`): every number
uniform from 1 to 100, the target uniform from 1 up. Its script draws six numbers and promises no solution (issue 108
there); the data set that it trains on, Countdown-Tasks-3to4, has three or four numbers, all solvable as far as its rows
show, and targets of two digits. So three or four numbers are drawn here, targets from 1 to 100, and what cannot be
solved is drawn again. A file of that data set can be given instead.
"""

import random
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

from bench.paper.problems import BadInput, read_records
from demo.problem import Problem

PROMPT = (
    "Write an expression that equals {target}. Use each of the numbers {numbers} exactly once, with +, -, * and / and "
    "parentheses as you need them. First think inside <think> </think>, then give the expression alone inside "
    "<answer> </answer>, as in <answer>(1 + 2) / 3</answer>."
)
LARGEST_NUMBER = 100
LARGEST_TARGET = 100
COUNTS = (3, 4)


def draw(count: int, name: str, prompt: str = PROMPT, without: frozenset[str] = frozenset()) -> list[Problem]:
    """Draw `count` different solvable problems, the same ones for the same name, none of them with a key in `without`.

    Raises: BadInput where the prompt's text is not one.
    """
    rng = random.Random(f"bench.paper countdown {name}")
    found: dict[str, Problem] = {}
    while len(found) < count:
        numbers = [rng.randint(1, LARGEST_NUMBER) for _ in range(rng.choice(COUNTS))]
        target = rng.randint(1, LARGEST_TARGET)
        problem = make_problem(numbers, target, prompt)
        if problem.key not in found and problem.key not in without and can_make(numbers, target):
            found[problem.key] = problem
    return list(found.values())


def make_problem(numbers: list[int], target: int, prompt: str = PROMPT) -> Problem:
    """Word one problem. Two that differ only in the order of their numbers share a key. Raises: BadInput."""
    listed = f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}" if numbers[1:] else str(numbers[0])
    try:
        question = prompt.format(numbers=numbers, listed=listed, target=target)
    except (LookupError, ValueError) as error:
        raise BadInput(
            f"--countdown-prompt may hold {{numbers}}, {{listed}} and {{target}}, and no other braces: {error!r}"
        ) from None
    if str(target) not in question or not (str(numbers) in question or listed in question):
        raise BadInput(
            "--countdown-prompt has to hold {target} and {numbers} (as [3, 5, 2]) or {listed} (as 3, 5 and 2): the "
            "model is told them nowhere else"
        )
    return Problem(
        task="countdown",
        messages=[{"role": "user", "content": question}],
        verifier="countdown",
        args={"numbers": list(numbers), "target": target},
        key=f"countdown {sorted(numbers)} {target}",
    )


def read_file(path: Path, prompt: str = PROMPT) -> list[Problem]:
    """Read `{"target": 98, "nums": [44, 19, 35]}` records (Countdown-Tasks-3to4's columns), each problem once.

    Raises: BadInput that names the line.
    """
    found: dict[str, Problem] = {}
    for line, record in read_records(path, "--countdown"):
        numbers, target = _read_record(record, f"{path}, line {line}")
        problem = make_problem(numbers, target, prompt)
        found.setdefault(problem.key, problem)
    return list(found.values())


def _read_record(record: Any, where: str) -> tuple[list[int], int]:
    given = record if isinstance(record, dict) else {}
    numbers, target = given.get("nums"), given.get("target")
    whole = isinstance(numbers, list) and all(_is_whole(one) for one in [*numbers, target])
    if not isinstance(numbers, list) or not numbers or not whole or not _is_whole(target):
        raise BadInput(f'{where}: {{"target": 98, "nums": [44, 19, 35]}} is expected, of whole numbers')
    return numbers, int(target)  # pyright: ignore[reportArgumentType] - a whole number, as was just seen


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def can_make(numbers: Sequence[int], target: Fraction | int) -> bool:
    """Say whether an expression with each number exactly once makes the target, in exact arithmetic."""
    if len(numbers) <= 2:
        return target in _values(tuple(numbers))
    for left, right in _splits(tuple(numbers)):
        for one in _values(left):
            if not one and not target:
                return True  # 0 times whatever the others make
            # What the others would have to make, from the target backwards: far fewer than all that they can.
            needed = {target - one, one - target, one + target}
            if one:
                needed |= {target / one, target * one}
                if target:
                    needed.add(one / target)
            if any(can_make(right, value) for value in needed):
                return True
    return False


def _combine(one: Fraction, other: Fraction) -> set[Fraction]:
    made = {one + other, one - other, other - one, one * other}
    if other:
        made.add(one / other)
    if one:
        made.add(other / one)
    return made


def _splits(numbers: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield each way to cut the numbers into two parts that are not empty, each once."""
    places = range(len(numbers))
    for size in range(1, len(numbers) // 2 + 1):
        for chosen in combinations(places, size):
            if 2 * size == len(numbers) and 0 not in chosen:
                continue
            rest = tuple(numbers[place] for place in places if place not in chosen)
            yield tuple(numbers[place] for place in chosen), rest


@lru_cache(maxsize=8192)
def _values(numbers: tuple[int, ...]) -> frozenset[Fraction]:
    """List every value that an expression with each of the numbers exactly once can have."""
    if len(numbers) == 1:
        return frozenset([Fraction(numbers[0])])
    made: set[Fraction] = set()
    for left, right in _splits(numbers):
        for one in _values(left):
            for other in _values(right):
                made |= _combine(one, other)
    return frozenset(made)
