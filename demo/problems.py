"""Owns the streams of problems of each task and split.

Called by the corpus, by the measurements and by the `mulligan demo` client. It must stay free of torch and
transformers: the client only needs the standard library.
"""

from collections.abc import Iterator

from demo import countdown, function_call
from demo.problem import Problem
from demo.splits import SPLITS, Split

__all__ = ["SPLITS", "TASKS", "Problem", "Split", "problems"]

TASKS = ("countdown", "function_call")


def problems(task: str, split: Split, seed: int) -> Iterator[Problem]:
    """Yield problems for ever, the same ones for the same arguments.

    Nothing repeats until the split is used up. Raises ValueError for an unknown task or split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if task == "countdown":
        return countdown.problems(split, seed)
    if task == "function_call":
        return function_call.problems(split, seed)
    raise ValueError(f"unknown demo task {task!r}: choose one of {', '.join(TASKS)}")
