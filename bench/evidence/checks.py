"""Judges answers anew, by means that share no code with the verifiers whose verdicts make the table.

Countdown: Python's own parser and exact fractions. Function calls: JSON, compared value by value and type by type.
"""

import ast
import json
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from demo.problem import Problem

_LONGEST = 200
_OPERATIONS = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: lambda left, right: left / right,
}


def is_right(problem: Problem, answer: Mapping[str, Any]) -> bool:
    """Say whether an assistant message answers a problem of the demo. Raises ValueError for an unknown task."""
    if problem.task == "countdown":
        return _solves(str(answer.get("content") or ""), problem.args["numbers"], problem.args["target"])
    if problem.task == "function_call":
        return _calls(answer, problem.args["reference"])
    raise ValueError(f"no check for task {problem.task!r}")


def _solves(text: str, numbers: list[int], target: int) -> bool:
    """Say whether the text after the last `answer:` uses each number once and makes the target."""
    _, marked, tail = text.lower().rpartition("answer:")
    lines = [line.strip() for line in tail.strip().splitlines()]
    left, equals, right = (lines[0] if lines else "").removesuffix(".").partition("=")
    if not marked or not left.isascii() or len(left) > _LONGEST:
        return False
    try:
        used: list[int] = []
        value = _evaluate(ast.parse(left.strip(), mode="eval").body, used)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return False
    claimed = not equals or right.strip() == str(target)
    return claimed and value == target and sorted(used) == sorted(numbers)


def _evaluate(node: ast.expr, used: list[int]) -> Fraction:
    """Compute an expression exactly, noting its numbers. Raises ValueError for anything but the four operations."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_evaluate(node.left, used), _evaluate(node.right, used))
    raise ValueError("not a sum of whole numbers")


def _calls(answer: Mapping[str, Any], reference: Mapping[str, Any]) -> bool:
    """Say whether the message makes the reference's call and no other."""
    made = answer.get("tool_calls") or []
    if len(made) != 1:
        return False
    function = made[0]["function"]
    try:
        arguments = json.loads(function["arguments"], object_pairs_hook=_without_twins)
    except ValueError:
        return False
    return function["name"] == reference["name"] and _same(arguments, reference["arguments"])


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object. Raises ValueError where a name comes twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return one == other
