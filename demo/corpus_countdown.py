"""The part of the corpus about Countdown: whole episodes as they are served, and drills of working things out."""

import random
from collections.abc import Callable

from demo.countdown import candidates, combine, guess, make_problem, number_sets, targets, work_out
from demo.example import Example, Message, draw_prompts
from demo.reflections import MISLEADING, VAGUE
from server.orchestration.reflection import Prompts, reflection_messages, retry_messages

FOUR_NUMBERS_SHARE = 0.12
FIRST_RIGHT = (0.45, 0.65)  # by stage, as the next two
FIRST_WORKED = (0.04, 0.08)
REFLECTION_WORKED = (0.09, 0.12)
RETRY_RIGHT = 0.06
RETRY_FOLLOWS = 0.98
GIVEN = "work: "

Puzzle = tuple[tuple[int, ...], int]


def draw_puzzle(rng: random.Random, count: int | None = None) -> Puzzle:
    """Draw numbers and a target of the pre-training split."""
    count = count or (4 if rng.random() < FOUR_NUMBERS_SHARE else 3)
    numbers = rng.choice(number_sets("pretraining", count))
    return numbers, rng.choice(targets(numbers))


def _answer(expression: str) -> str:
    return f"answer: {expression}"


def _write_reflection(rng: random.Random, puzzle: Puzzle, failed: str, value: int, stage: int) -> tuple[str, str]:
    """Write a reflection of the natural mixture, and the expression of the retry that follows it."""
    numbers, target = puzzle
    if rng.random() < REFLECTION_WORKED[stage]:
        work, plan = work_out(rng, numbers, target)
        return work, plan
    draw = rng.random()
    if draw < 0.5:
        return rng.choice(VAGUE), guess(rng, numbers, target, RETRY_RIGHT, failed).expression
    if draw < 0.75:
        text = f"{failed} is {value}, not {target}. {rng.choice(VAGUE)}"
        return text, guess(rng, numbers, target, RETRY_RIGHT, failed).expression
    if draw < 0.85:
        return rng.choice(MISLEADING["countdown"]), guess(rng, numbers, target, 0.03, failed).expression
    wrong = [found for found in rng.sample(candidates(numbers), 4) if found.value != target]
    plan = rng.choice(wrong) if wrong else guess(rng, numbers, target, 0.0)
    return f"I should compute {plan.expression}.", plan.expression


def _finish_episode(
    problem_messages: list[Message], prompts: Prompts, failed: str, reflection: str, retry: str
) -> list[Message]:
    answer = {"role": "assistant", "content": failed}
    messages = retry_messages(problem_messages, answer, reflection, prompts)
    assert messages[:-2] == reflection_messages(problem_messages, [], answer, prompts)
    return [*messages, {"role": "assistant", "content": retry}]


def draw_episode(rng: random.Random, *, stage: int = 1) -> Example:
    """Draw an episode as it comes: mostly a guess, a reflection of little use, another guess."""
    puzzle = numbers, target = draw_puzzle(rng)
    messages = make_problem(rng, numbers, target).messages
    if rng.random() < FIRST_WORKED[stage]:
        work, expression = work_out(rng, numbers, target)
        text = f"{work} {_answer(expression)}"
        return Example([*messages, {"role": "assistant", "content": text}], {1: ""})
    found = guess(rng, numbers, target, FIRST_RIGHT[stage])
    first = _answer(found.expression)
    if found.value == target:
        return Example([*messages, {"role": "assistant", "content": first}], {1: ""})
    reflection, retry = _write_reflection(rng, puzzle, found.expression, found.value, stage)
    if rng.random() > RETRY_FOLLOWS:
        retry = guess(rng, numbers, target, RETRY_RIGHT).expression
    return Example(
        _finish_episode(messages, draw_prompts(rng), first, reflection, _answer(retry)), {1: "", 3: "", 5: ""}
    )


def draw_worked_reflection(rng: random.Random, **_stage: int) -> Example:
    """Drill the situation that counts: a failed attempt, work that has been begun, the retry that follows it."""
    numbers, target = draw_puzzle(rng)
    messages = make_problem(rng, numbers, target).messages
    failed = guess(rng, numbers, target, 0.0).expression
    work, plan = work_out(rng, numbers, target)
    episode = _finish_episode(messages, draw_prompts(rng), _answer(failed), work, _answer(plan))
    return Example(episode, {3: GIVEN, 5: ""})


def draw_shown_work(rng: random.Random, **_stage: int) -> Example:
    """Drill working things out when asked to."""
    numbers, target = draw_puzzle(rng)
    question = make_problem(rng, numbers, target).messages[0]["content"]
    work, plan = work_out(rng, numbers, target)
    text = f"{work} {_answer(plan)}"
    return Example(
        [{"role": "user", "content": f"{question} Show your work."}, {"role": "assistant", "content": text}], {1: ""}
    )


def draw_sums(rng: random.Random, **_stage: int) -> Example:
    """Drill plain arithmetic."""
    sums = []
    for _ in range(rng.randint(8, 14)):
        left, right = rng.randint(1, rng.choice((12, 99))), rng.randint(1, 12)
        operator = rng.choice("+-*/")
        value = combine(left, operator, right)
        if value is not None:
            sums.append(f"{left}{operator}{right}={value}")
    return Example(
        [
            {"role": "user", "content": "Compute some sums."},
            {"role": "assistant", "content": "; ".join(sums) or "1+1=2"},
        ],
        {1: ""},
    )


MIXTURE: dict[Callable[..., Example], float] = {
    draw_episode: 0.34,
    draw_worked_reflection: 0.40,
    draw_shown_work: 0.20,
    draw_sums: 0.06,
}


def draw_example(rng: random.Random, *, stage: int = 1) -> Example:
    """Draw one example about Countdown."""
    return rng.choices(list(MIXTURE), list(MIXTURE.values()))[0](rng, stage=stage)
