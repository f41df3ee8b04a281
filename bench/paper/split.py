"""Cuts problems into those that are measured and those that are trained on; nothing is in both.

The test problems are the same for every seed; the training problems are not.
"""

import random
from dataclasses import dataclass

from bench.paper import countdown
from bench.paper.problems import BadInput
from bench.paper.xlam import XlamFile
from demo.problem import Problem


@dataclass(frozen=True)
class Data:
    """Where problems come from. Without a file Countdown's are drawn."""

    countdown_prompt: str = countdown.PROMPT
    countdown_file: list[Problem] | None = None
    xlam_file: XlamFile | None = None


def split_problems(task: str, data: Data, test: int, training: int, seed: int) -> tuple[list[Problem], list[Problem]]:
    """Give `test` and `training` problems of a task. Raises: BadInput where a file has too few."""
    if task == "countdown" and data.countdown_file is None:
        measured = countdown.draw(test, "test", data.countdown_prompt)
        keys = frozenset(problem.key for problem in measured)
        return measured, countdown.draw(training, f"training {seed}", data.countdown_prompt, keys)
    found = data.countdown_file if task == "countdown" else data.xlam_file.problems if data.xlam_file else []
    return _cut(list(found or []), task, test, training, seed)


def _cut(found: list[Problem], task: str, test: int, training: int, seed: int) -> tuple[list[Problem], list[Problem]]:
    if len(found) < test + 1:
        option = "--countdown" if task == "countdown" else "--xlam"
        raise BadInput(
            f"{option}: the file has {len(found):,} usable problems, and {test:,} are to be measured: say "
            "--problems with fewer, so that some are left to train on"
        )
    random.Random("bench.paper test").shuffle(found)
    measured, rest = found[:test], found[test:]
    # The same question with other tools would not be the same key, but the server holds out by the question.
    asked = {problem.messages[0]["content"] for problem in measured}
    rest = [problem for problem in rest if problem.messages[0]["content"] not in asked]
    random.Random(f"bench.paper training {seed}").shuffle(rest)
    return measured, rest[:training]
