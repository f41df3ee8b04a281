"""The kind `countdown`: an expression that uses each given number exactly once and makes the target.

Owns what counts as the answer inside of an answer, and the rules of the game; `verifiers.arithmetic` evaluates. It
must never run anything from an answer.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from verifiers.answers import read_text
from verifiers.arithmetic import BadExpression, evaluate
from verifiers.base import Answer, Cause, InvalidArgs, Request, Verdict
from verifiers.kind import Kind

_BOUND = 10**12
_PROBLEM: dict[str, Any] = {
    "numbers": {
        "type": "array",
        "items": {"type": "integer", "minimum": 0, "maximum": _BOUND},
        "minItems": 1,
        "maxItems": 32,
        "description": "The numbers; each is to be used exactly once.",
    },
    "target": {"type": "integer", "minimum": -_BOUND, "maximum": _BOUND, "description": "What the expression makes."},
}
SCHEMA = {"type": "object", "properties": _PROBLEM, "additionalProperties": False}

_MARK = re.compile(r"answer:", re.IGNORECASE | re.ASCII)
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE | re.ASCII)
_TAIL = re.compile(r"[ \t]*-?[0-9]{1,15}[ \t]*", re.ASCII)
_WRAPPERS = ("**", "`", "$")
_TIMES = {1: "once", 2: "twice"}


class CountdownVerifier:
    """Compiled; `config` holds what arguments may leave out."""

    never_waits = True

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._defaults = dict(config)

    async def verify(self, request: Request, answer: Answer, args: Mapping[str, Any]) -> Verdict:
        """Judge the expression in the answer's text."""
        problem = {**self._defaults, **args}
        numbers: Any = problem.get("numbers")
        target: Any = problem.get("target")
        if not _are_integers(numbers) or not _are_integers([target]):
            return Verdict.abstained("the numbers or the target are missing, or no integers", Cause.BAD_ARGS)
        flaw = find_flaw(read_text(answer), numbers, target)
        return Verdict.failed(flaw, safe_for_model=True) if flaw else Verdict.passed()


def find_flaw(text: str, numbers: Sequence[int], target: int) -> str:
    """Find what is wrong with the answer in `text`; "" if nothing is."""
    marked = find_answer(text)
    expression = (text if marked is None else marked).strip()
    if not expression:
        return "there is no answer" if marked is None else "the answer is empty"
    expression, equals, claimed = expression.partition("=")
    try:
        value, used = evaluate(expression)
    except BadExpression as error:
        return f"{error}" if marked is not None else f"there is no answer: {error}"
    flaw = _compare_numbers(used, numbers)
    if flaw:
        return flaw
    if value != target:
        return f"evaluates to {value}, not {target}"
    if equals and (not _TAIL.fullmatch(claimed) or int(claimed) != target):
        return f"says that it makes {claimed.strip()[:40]!a}, not {target}"
    return ""


def find_answer(text: str) -> str | None:
    """Find what an answer gives as its answer; None where nothing is marked as such.

    That is the inside of the last `<answer>...</answer>`, or the first line with anything on it after the last
    `answer:`, freed of Markdown around it and of a full stop behind it.
    """
    tagged = _find_tagged(text)
    if tagged is not None:
        return _undress(tagged)
    last = None
    for match in _MARK.finditer(text):
        last = match
    if last is None:
        return None
    lines = (line.strip() for line in text[last.end() :].removeprefix("**").splitlines())
    return _undress(next((line for line in lines if line), ""))


def _find_tagged(text: str) -> str | None:
    found, opened = None, None
    for match in _TAG.finditer(text):
        if not match[1]:
            opened = match.end()
        elif opened is not None:
            found, opened = text[opened : match.start()], None
    return found


def _undress(text: str) -> str:
    text = text.strip().removesuffix(".")
    for wrapper in _WRAPPERS:
        if len(text) > 2 * len(wrapper) and text.startswith(wrapper) and text.endswith(wrapper):
            text = text[len(wrapper) : -len(wrapper)]
    return text.strip()


def _compare_numbers(used: Sequence[int], given: Sequence[int]) -> str:
    """Say how the numbers used differ from those given; "" where they are the same, in any order."""
    counts, wanted = Counter(used), Counter(given)
    if counts == wanted:
        return ""
    for number, count in counts.items():
        if number not in wanted:
            return f"uses {number}, which is not one of the numbers"
        if count > wanted[number]:
            return f"uses {number} {_say_times(count)}, not {_say_times(wanted[number])}"
    number = next(number for number in given if counts[number] < wanted[number])
    if not counts[number]:
        return f"does not use {number}"
    return f"uses {number} {_say_times(counts[number])}, not {_say_times(wanted[number])}"


def _say_times(count: int) -> str:
    return _TIMES.get(count, f"{count} times")


def _are_integers(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)


def _require_problem(config: Mapping[str, Any], args: Mapping[str, Any]) -> None:
    for name in _PROBLEM:
        if name not in config and name not in args:
            raise InvalidArgs(f"countdown: {name} is missing", f"/{name}")


KIND = Kind(
    name="countdown",
    summary="The answer is an expression that uses each given number exactly once and makes the target.",
    config_schema={**SCHEMA, "description": "Defaults for what the arguments leave out."},
    args_schema=SCHEMA,
    compile=CountdownVerifier,
    accept_args=_require_problem,
)
